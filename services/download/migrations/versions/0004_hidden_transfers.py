"""Add to each transfer whether a caller removed its record while its model is there."""

import sqlalchemy as sa
from alembic import op

revision = "download_0004"
down_revision = "download_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transfer", sa.Column("hidden", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("transfer", "hidden")
