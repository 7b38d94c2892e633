"""Count the runs of a transfer that were killed without progress."""

import sqlalchemy as sa
from alembic import op

revision = "download_0019"
down_revision = "download_0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("killed_runs", "killed_bytes"):
        op.add_column("transfer", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    for name in ("killed_bytes", "killed_runs"):
        op.drop_column("transfer", name)
