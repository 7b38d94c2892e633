"""Add to each transfer the LoRA adapters of its model."""

import sqlalchemy as sa
from alembic import op

revision = "download_0012"
down_revision = "download_0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transfer", sa.Column("adapters", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("transfer", "adapters")
