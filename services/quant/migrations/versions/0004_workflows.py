"""Add to jobs the workflow that runs them on a cluster."""

import sqlalchemy as sa
from alembic import op

revision = "quant_0004"
down_revision = "quant_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("quant_job", sa.Column("workflow", sa.String(63), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("quant_job", "workflow")
