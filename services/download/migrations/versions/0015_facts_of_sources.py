"""Add to each model what its source says beside its files."""

import sqlalchemy as sa
from alembic import op

revision = "download_0015"
down_revision = "download_0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("source_facts", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("model", "source_facts")
