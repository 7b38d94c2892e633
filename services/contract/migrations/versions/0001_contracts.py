"""Create the tables of contracts, keys, usage and decisions.

Revision ID: contract_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "contract_0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "contract",
        sa.Column("contract_id", sa.String(64), nullable=False),
        sa.Column("display_name", sa.String(128), nullable=False),
        sa.Column("max_concurrent_requests", sa.BigInteger(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("create_time", MOMENT, nullable=False),
        sa.Column("update_time", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("contract_id", name="pk_contract"),
    )
    op.create_index("ix_contract_create_time", "contract", ["create_time", "contract_id"])
    op.create_table(
        "issued_key",
        sa.Column("key_id", sa.String(64), nullable=False),
        sa.Column("display_name", sa.String(128), nullable=False),
        sa.Column("owner", sa.String(128), nullable=False),
        sa.Column("contract_id", sa.String(64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("create_time", MOMENT, nullable=False),
        sa.Column("expire_time", MOMENT, nullable=False),
        sa.Column("revoke_time", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("key_id", name="pk_issued_key"),
    )
    op.create_index("ix_issued_key_create_time", "issued_key", ["create_time", "key_id"])
    op.create_index("ix_issued_key_owner", "issued_key", ["owner", "create_time", "key_id"])
    op.create_index("ix_issued_key_contract_id", "issued_key", ["contract_id"])
    op.create_index("ix_issued_key_revoke_time", "issued_key", ["revoke_time"])
    op.create_table(
        "usage_day",
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("model_name", sa.String(256), nullable=False),
        sa.Column("contract_id", sa.String(64), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("unknown_requests", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "subject", "model_name", "contract_id", name="pk_usage_day"),
    )
    op.create_index("ix_usage_day_subject", "usage_day", ["subject", "day"])
    op.create_table(
        "decision",
        sa.Column("decision_id", sa.String(64), nullable=False),
        sa.Column("create_time", MOMENT, nullable=False),
        sa.Column("subject", sa.String(128), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("object", sa.String(256), nullable=False),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.Column("refusals", sa.JSON(), nullable=False),
        sa.Column("memory", sa.JSON(), nullable=True),
        sa.Column("contract_id", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("decision_id", name="pk_decision"),
    )
    op.create_index("ix_decision_create_time", "decision", ["create_time", "decision_id"])
    op.create_index("ix_decision_subject", "decision", ["subject", "create_time", "decision_id"])


def downgrade() -> None:
    for table in ("decision", "usage_day", "issued_key", "contract"):
        op.drop_table(table)
