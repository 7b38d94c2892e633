"""Users keep an id that no later user of the same name has, and a number that rises with every change of their rights.

Revision ID: gateway_0002
Revises: gateway_0001
"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "gateway_0002"
down_revision = "gateway_0001"

_USERS = sa.table("users", sa.column("username", sa.String), sa.column("uid", sa.String))


def upgrade() -> None:
    op.add_column("users", sa.Column("uid", sa.String(64), nullable=False, server_default=""))
    op.add_column("users", sa.Column("standing", sa.BigInteger, nullable=False, server_default="1"))
    op.add_column("users", sa.Column("disabled", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("users", sa.Column("tokens_until", sa.DateTime(timezone=True), nullable=True))
    connection = op.get_bind()
    for (username,) in connection.execute(sa.select(_USERS.c.username)).all():
        uid = f"usr_{secrets.token_hex(8)}"
        connection.execute(_USERS.update().where(_USERS.c.username == username).values(uid=uid))
    op.create_index("users_uid", "users", ["uid"], unique=True)
    op.create_index("users_contract_id", "users", ["contract_id"])
    op.create_table(
        "ended_standings",
        sa.Column("uid", sa.String(64), primary_key=True),
        sa.Column("standing", sa.BigInteger, primary_key=True),
        sa.Column("tokens_until", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "standings_changes",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO standings_changes (id, number) VALUES (1, 1)")


def downgrade() -> None:
    op.drop_table("standings_changes")
    op.drop_table("ended_standings")
    op.drop_index("users_contract_id", "users")
    op.drop_index("users_uid", "users")
    with op.batch_alter_table("users") as users:
        for name in ("tokens_until", "disabled", "standing", "uid"):
            users.drop_column(name)
