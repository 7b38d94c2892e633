"""Add the key with which a key was made: its revocation revokes both.

Revision ID: contract_0006
Revises: contract_0005
"""

import sqlalchemy as sa
from alembic import op

revision = "contract_0006"
down_revision = "contract_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("issued_key", sa.Column("made_by", sa.String(64), nullable=True))


def downgrade() -> None:
    op.drop_column("issued_key", "made_by")
