"""A request_id belongs to a user id, not to a user name. Existing rows keep a name, which no later request matches."""

import sqlalchemy as sa
from alembic import op

revision = "controller_0005"
down_revision = "controller_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("server", sa.Column("requester", sa.String(), nullable=False, server_default=""))
    op.execute("UPDATE server SET requester = owner")
    with op.batch_alter_table("server") as server:
        server.drop_constraint("uq_server_owner", type_="unique")
        server.create_unique_constraint("uq_server_requester", ["requester", "request_id"])


def downgrade() -> None:
    # Of users of one name who used the same id, the last one keeps it.
    op.execute(
        "UPDATE server SET request_id = NULL WHERE EXISTS (SELECT 1 FROM server AS later WHERE later.owner = server.owner "
        "AND later.request_id = server.request_id AND later.create_time > server.create_time)"
    )
    with op.batch_alter_table("server") as server:
        server.drop_constraint("uq_server_requester", type_="unique")
        server.create_unique_constraint("uq_server_owner", ["owner", "request_id"])
        server.drop_column("requester")
