"""Add to jobs the importance matrix that they are given."""

import sqlalchemy as sa
from alembic import op

revision = "quant_0006"
down_revision = "quant_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("quant_job", sa.Column("matrix_source", sa.String(2048), nullable=False, server_default=""))
    op.add_column("quant_job", sa.Column("matrix_version", sa.String(255), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("quant_job", "matrix_version")
    op.drop_column("quant_job", "matrix_source")
