"""Add to each transfer and each model the revision of its source."""

import sqlalchemy as sa
from alembic import op

revision = "download_0005"
down_revision = "download_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("transfer", "model"):
        op.add_column(table, sa.Column("revision", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    for table in ("transfer", "model"):
        op.drop_column(table, "revision")
