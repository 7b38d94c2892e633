"""Add to each transfer the source of its model's projector."""

import sqlalchemy as sa
from alembic import op

revision = "download_0011"
down_revision = "download_0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transfer", sa.Column("projector", sa.String(2048), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("transfer", "projector")
