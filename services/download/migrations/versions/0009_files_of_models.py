"""Give each model a row for each of its files: one for each model there is."""

import sqlalchemy as sa
from alembic import op

revision = "download_0009"
down_revision = "download_0008"
branch_labels = None
depends_on = None

MOVED = {"sha256": 64, "object_key": 128, "damage": 128, "problem": 4096}
INDEXED = ("sha256", "object_key")
MODEL = sa.table("model", *map(sa.column, ("model_uuid", "name", "size_bytes", *MOVED)))
FILE = sa.table("model_file", *map(sa.column, ("model_uuid", "name", "size_bytes", *MOVED, "number", "role")))


def upgrade() -> None:
    op.create_table(
        "model_file",
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        *(sa.Column(name, sa.String(length), nullable=False) for name, length in MOVED.items()),
        sa.PrimaryKeyConstraint("model_uuid", "number", name="pk_model_file"),
    )
    first = sa.select(*MODEL.c, sa.literal_column("1"), sa.literal_column("'WEIGHTS'"))
    op.execute(sa.insert(FILE).from_select(list(FILE.c), first))
    for column in INDEXED:
        op.create_index(f"ix_model_file_{column}", "model_file", [column])
        op.drop_index(f"ix_model_{column}", "model")
    for column in MOVED:
        op.drop_column("model", column)
    op.add_column("partial_object", sa.Column("file_number", sa.BigInteger(), nullable=False, server_default="1"))


def downgrade() -> None:
    op.drop_column("partial_object", "file_number")
    for column, length in MOVED.items():
        op.add_column("model", sa.Column(column, sa.String(length), nullable=False, server_default=""))
        first = sa.select(FILE.c[column]).where(FILE.c.model_uuid == MODEL.c.model_uuid, FILE.c.number == 1)
        op.execute(sa.update(MODEL).values({column: first.scalar_subquery()}))
    for column in INDEXED:
        op.create_index(f"ix_model_{column}", "model", [column])
    op.drop_table("model_file")
