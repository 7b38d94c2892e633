"""Add to each job whether it uses an importance matrix, and the text for it."""

import sqlalchemy as sa
from alembic import op

revision = "quant_0002"
down_revision = "quant_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("quant_job", sa.Column("importance_matrix", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("quant_job", sa.Column("calibration_text", sa.Text(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("quant_job", "calibration_text")
    op.drop_column("quant_job", "importance_matrix")
