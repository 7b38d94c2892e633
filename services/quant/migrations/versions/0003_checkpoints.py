"""Add to jobs and models the checkpoint that they are made from."""

import sqlalchemy as sa
from alembic import op

revision = "quant_0003"
down_revision = "quant_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("quant_job", sa.Column("source", sa.String(2048), nullable=False, server_default=""))
    op.add_column("quant_job", sa.Column("shown_source", sa.String(2048), nullable=False, server_default=""))
    op.add_column("quant_model", sa.Column("source", sa.String(2048), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("quant_model", "source")
    op.drop_column("quant_job", "shown_source")
    op.drop_column("quant_job", "source")
