"""Add to each model what searches compare, with an index for each filter and order."""

import sqlalchemy as sa
from alembic import op

revision = "download_0008"
down_revision = "download_0007"
branch_labels = None
depends_on = None

COLUMNS = {"search_name": 128, "architecture": 1024, "quantisation": 64, "source_kind": 16}
FILTERS = ("architecture", "quantisation", "source_kind")
ORDERS = ("create_time", "search_name", "size_bytes")
KINDS = {"hf": "hub", "http": "http", "https": "http", "s3": "s3", "quant": "quant"}
MODEL = sa.table(
    "model",
    *(sa.column(name) for name in ("model_uuid", "name", "source", *COLUMNS)),
    sa.column("gguf", sa.JSON()),
)


def upgrade() -> None:
    for column, length in COLUMNS.items():
        op.add_column("model", sa.Column(column, sa.String(length), nullable=False, server_default=""))
    op.create_table(
        "model_tag",
        sa.Column("tag", sa.String(64), nullable=False),
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("tag", "model_uuid", name="pk_model_tag"),
    )
    connection = op.get_bind()
    rows = connection.execute(sa.select(MODEL.c.model_uuid, MODEL.c.name, MODEL.c.source, MODEL.c.gguf)).all()
    for model_uuid, name, source, gguf in rows:
        values = {
            "search_name": name.lower(),
            "architecture": str(gguf.get("architecture", "")).lower(),
            "quantisation": str(gguf.get("quantisation", "")).lower(),
            "source_kind": KINDS.get(source.partition(":")[0], "file"),
        }
        connection.execute(sa.update(MODEL).where(MODEL.c.model_uuid == model_uuid).values(values))
    op.create_index("ix_model_tag_model_uuid", "model_tag", ["model_uuid"])
    for order in ORDERS[1:]:
        op.create_index(f"ix_model_{order}", "model", [order, "model_uuid"])
    for column in FILTERS:
        for order in ORDERS:
            op.create_index(f"ix_model_{column}_{order}", "model", [column, order, "model_uuid"])


def downgrade() -> None:
    for column in FILTERS:
        for order in ORDERS:
            op.drop_index(f"ix_model_{column}_{order}", "model")
    for order in ORDERS[1:]:
        op.drop_index(f"ix_model_{order}", "model")
    op.drop_table("model_tag")
    for column in COLUMNS:
        op.drop_column("model", column)
