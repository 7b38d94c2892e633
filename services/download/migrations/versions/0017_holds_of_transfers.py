"""Note whether others may wait for a transfer, for the processes that do not run it."""

import sqlalchemy as sa
from alembic import op

revision = "download_0017"
down_revision = "download_0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transfer", sa.Column("holds", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("transfer", "holds")
