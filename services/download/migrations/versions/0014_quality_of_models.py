"""Add to each file of a model what the checks of the Quant service have found."""

import sqlalchemy as sa
from alembic import op

revision = "download_0014"
down_revision = "download_0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_file", sa.Column("quality", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("model_file", "quality")
