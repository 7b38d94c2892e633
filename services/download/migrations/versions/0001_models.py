"""Create the tables of models, transfers and objects without a model.

Revision ID: download_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "download_0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "transfer",
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("source", sa.String(2048), nullable=False),
        sa.Column("shown_source", sa.String(4096), nullable=False),
        sa.Column("expected_sha256", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("resume_count", sa.BigInteger(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("error_reason", sa.String(64), nullable=False),
        sa.Column("error_message", sa.String(4096), nullable=False),
        sa.Column("create_time", MOMENT, nullable=False),
        sa.Column("update_time", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("model_uuid", name="pk_transfer"),
    )
    op.create_index("ix_transfer_create_time", "transfer", ["create_time", "model_uuid"])
    op.create_index("ix_transfer_state", "transfer", ["state"])
    op.create_table(
        "model",
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("object_key", sa.String(128), nullable=False),
        sa.Column("source", sa.String(4096), nullable=False),
        sa.Column("gguf", sa.JSON(), nullable=False),
        sa.Column("create_time", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("model_uuid", name="pk_model"),
    )
    op.create_index("ix_model_create_time", "model", ["create_time", "model_uuid"])
    op.create_index("ix_model_sha256", "model", ["sha256"])
    op.create_table(
        "unowned_object",
        sa.Column("object_key", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("object_key", name="pk_unowned_object"),
    )
