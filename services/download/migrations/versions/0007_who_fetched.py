"""Add to each transfer and each model who requested it."""

import sqlalchemy as sa
from alembic import op

revision = "download_0007"
down_revision = "download_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transfer", sa.Column("requested_by", sa.String(256), nullable=False, server_default=""))
    op.add_column("model", sa.Column("fetched_by", sa.String(256), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("model", "fetched_by")
    op.drop_column("transfer", "requested_by")
