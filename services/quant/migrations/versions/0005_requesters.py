"""Add to jobs the user whose rights decide whether they go on."""

import sqlalchemy as sa
from alembic import op

revision = "quant_0005"
down_revision = "quant_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("quant_job", sa.Column("requester_uid", sa.String(256), nullable=False, server_default=""))
    op.execute("UPDATE quant_job SET requester_uid = owner_uid")


def downgrade() -> None:
    op.drop_column("quant_job", "requester_uid")
