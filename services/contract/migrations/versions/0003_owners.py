"""Add the owner's id to keys, so that a later user of the same name does not own them.

Revision ID: contract_0003
Revises: contract_0002
"""

import sqlalchemy as sa
from alembic import op

revision = "contract_0003"
down_revision = "contract_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Empty in keys from before users had ids: such a key belongs to the user that had the name when the key was created.
    op.add_column("issued_key", sa.Column("owner_uid", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("issued_key") as keys:
        keys.drop_column("owner_uid")
