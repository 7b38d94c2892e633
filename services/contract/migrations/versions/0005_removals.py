"""Add the mark of a contract's deletion, which is set before its users are counted.

Revision ID: contract_0005
Revises: contract_0004
"""

import sqlalchemy as sa
from alembic import op

revision = "contract_0005"
down_revision = "contract_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("contract", sa.Column("removing_until", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("contract", "removing_until")
