"""Add to each file of a model which version of which source it came from."""

import sqlalchemy as sa
from alembic import op

revision = "download_0013"
down_revision = "download_0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_file", sa.Column("source_version", sa.String(64), nullable=False, server_default=""))
    op.create_index("ix_model_file_source_version", "model_file", ["source_version"])


def downgrade() -> None:
    op.drop_index("ix_model_file_source_version", "model_file")
    op.drop_column("model_file", "source_version")
