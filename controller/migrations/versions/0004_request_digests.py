"""What a request was that declared a server, so that its id cannot be used for another. Not known of servers that are there already."""

import sqlalchemy as sa
from alembic import op

revision = "controller_0004"
down_revision = "controller_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("server", sa.Column("request_digest", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("server", "request_digest")
