"""How much of an engine's memory engines of the same model share. Rows from before share nothing: they count in full."""

import sqlalchemy as sa
from alembic import op

revision = "controller_0003"
down_revision = "controller_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("server", sa.Column("shared_weights_bytes", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("server", "shared_weights_bytes")
