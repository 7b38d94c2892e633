"""Add the journal of objects that are written in parts."""

import sqlalchemy as sa
from alembic import op

revision = "download_0006"
down_revision = "download_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "partial_object",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("upload", sa.String(2048), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("part_size", sa.BigInteger(), nullable=False),
        sa.Column("etag", sa.String(1024), nullable=False),
        sa.Column("revision", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_partial_object"),
    )
    op.create_index("ix_partial_object_model_uuid", "partial_object", ["model_uuid"])
    op.create_table(
        "object_part",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("tag", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("name", "number", name="pk_object_part"),
    )


def downgrade() -> None:
    op.drop_table("object_part")
    op.drop_table("partial_object")
