"""The declared servers."""

import sqlalchemy as sa
from alembic import op

from llamesh.kit.database import Timestamp

revision = "controller_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "server",
        sa.Column("server_uuid", sa.String(), nullable=False),
        sa.Column("model_uuid", sa.String(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.Column("engine_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rest", sa.String(), nullable=False),
        sa.Column("removing", sa.Boolean(), nullable=False),
        sa.Column("create_time", Timestamp(), nullable=False),
        sa.Column("update_time", Timestamp(), nullable=False),
        sa.PrimaryKeyConstraint("server_uuid", name="pk_server"),
        sa.UniqueConstraint("owner", "request_id", name="uq_server_owner"),
    )
    op.create_index("ix_server_model_uuid", "server", ["model_uuid"])
    op.create_index("ix_server_create_time", "server", ["create_time"])


def downgrade() -> None:
    op.drop_table("server")
