"""Add the aliases of models."""

import sqlalchemy as sa
from alembic import op

revision = "download_0010"
down_revision = "download_0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_alias",
        sa.Column("alias", sa.String(128), nullable=False),
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("alias", name="pk_model_alias"),
    )
    op.create_index("ix_model_alias_model_uuid", "model_alias", ["model_uuid"])
    op.add_column("model", sa.Column("aliases", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("model", "aliases")
    op.drop_table("model_alias")
