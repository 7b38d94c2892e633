"""Add what several processes on one database need: claims on transfers, holds on objects, the lease on the store. Add damage of models."""

import sqlalchemy as sa
from alembic import op

revision = "download_0002"
down_revision = "download_0001"
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("transfer", sa.Column("claimed_by", sa.String(4096), nullable=False, server_default=""))
    op.add_column("transfer", sa.Column("claim_expires", MOMENT, nullable=True))
    op.add_column("model", sa.Column("damage", sa.String(128), nullable=False, server_default=""))
    op.create_index("ix_model_object_key", "model", ["object_key"])
    op.add_column("unowned_object", sa.Column("held_by", sa.String(4096), nullable=False, server_default=""))
    op.add_column("unowned_object", sa.Column("held_until", MOMENT, nullable=True))
    op.add_column("unowned_object", sa.Column("removing", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "lease",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("owner_id", sa.String(4096), nullable=False),
        sa.Column("owner_words", sa.String(4096), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
