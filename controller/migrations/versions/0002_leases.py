"""Leases: which mesh on this database runs the engines."""

import sqlalchemy as sa
from alembic import op

from llamesh.kit.database import Timestamp

revision = "controller_0002"
down_revision = "controller_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("owner_id", sa.String(4096), nullable=False),
        sa.Column("owner_words", sa.String(4096), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )


def downgrade() -> None:
    op.drop_table("lease")
