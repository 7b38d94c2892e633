"""Note for each object in parts under which key it is uploaded."""

import sqlalchemy as sa
from alembic import op

revision = "download_0016"
down_revision = "download_0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("partial_object", sa.Column("object_key", sa.String(128), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("partial_object", "object_key")
