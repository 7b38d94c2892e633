"""Mark a model that is being deleted, so that no server is declared on it meanwhile."""

import sqlalchemy as sa
from alembic import op

revision = "download_0018"
down_revision = "download_0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("deletion", sa.String(32), nullable=False, server_default=""))
    op.add_column("model", sa.Column("deletion_expires", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("model", "deletion_expires")
    op.drop_column("model", "deletion")
