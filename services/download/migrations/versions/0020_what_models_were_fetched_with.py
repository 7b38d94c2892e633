"""Record what a model was fetched with, while a later transfer of it has other values."""

import sqlalchemy as sa
from alembic import op

revision = "download_0020"
down_revision = "download_0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transfer", sa.Column("fetched_with", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("transfer", "fetched_with")
