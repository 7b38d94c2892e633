"""Add the ids of written batches of usage, so that a batch whose commit had an unknown outcome is not counted twice.

Revision ID: contract_0002
Revises: contract_0001
"""

import sqlalchemy as sa
from alembic import op

revision = "contract_0002"
down_revision = "contract_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage_batch",
        sa.Column("batch_id", sa.String(64), nullable=False),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("batch_id", name="pk_usage_batch"),
    )


def downgrade() -> None:
    op.drop_table("usage_batch")
