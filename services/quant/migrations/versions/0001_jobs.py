"""Create the tables of jobs, steps, published models and the lease of the service.

Revision ID: quant_0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

revision = "quant_0001"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "quant_job",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.Column("source_sha256", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("types", sa.JSON(), nullable=False),
        sa.Column("allow_requantize", sa.Boolean(), nullable=False),
        sa.Column("pure", sa.Boolean(), nullable=False),
        sa.Column("max_kl_divergence", sa.Float(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("owner", sa.String(256), nullable=False),
        sa.Column("owner_uid", sa.String(256), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("create_time", MOMENT, nullable=False),
        sa.Column("update_time", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("job_id", name="pk_quant_job"),
    )
    op.create_index("ix_quant_job_create_time", "quant_job", ["create_time", "job_id"])
    op.create_index("ix_quant_job_request", "quant_job", ["owner_uid", "request_id"])
    op.create_index("ix_quant_job_state", "quant_job", ["state"])
    op.create_table(
        "quant_step",
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("error_reason", sa.String(64), nullable=False),
        sa.Column("error_message", sa.String(4096), nullable=False),
        sa.Column("log", sa.String(4096), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("object_key", sa.String(128), nullable=False),
        sa.Column("start_time", MOMENT, nullable=True),
        sa.Column("end_time", MOMENT, nullable=True),
        sa.PrimaryKeyConstraint("job_id", "position", name="pk_quant_step"),
    )
    op.create_table(
        "quant_model",
        sa.Column("model_uuid", sa.String(128), nullable=False),
        sa.Column("name", sa.String(160), nullable=False),
        sa.Column("object_key", sa.String(128), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("quantisation", sa.String(16), nullable=False),
        sa.Column("source_model_uuid", sa.String(128), nullable=False),
        sa.Column("source_sha256", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("create_time", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("model_uuid", name="pk_quant_model"),
    )
    op.create_index("ix_quant_model_create_time", "quant_model", ["create_time", "model_uuid"])
    op.create_table(
        "lease",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("owner_id", sa.String(4096), nullable=False),
        sa.Column("owner_words", sa.String(4096), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_lease"),
    )
