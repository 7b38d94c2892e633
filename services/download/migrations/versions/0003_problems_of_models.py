"""Add to each model why it cannot be served, copied from its transfer."""

import sqlalchemy as sa
from alembic import op

revision = "download_0003"
down_revision = "download_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model", sa.Column("problem", sa.String(4096), nullable=False, server_default=""))
    op.execute(
        "UPDATE model SET problem = (SELECT error_message FROM transfer WHERE transfer.model_uuid = model.model_uuid) WHERE EXISTS "
        "(SELECT 1 FROM transfer WHERE transfer.model_uuid = model.model_uuid AND state = 'FAILED' AND error_reason = 'MODEL_CORRUPT')"
    )


def downgrade() -> None:
    op.drop_column("model", "problem")
