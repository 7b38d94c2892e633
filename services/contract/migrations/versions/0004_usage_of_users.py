"""Add the user's id to usage, so that a later user of the same name does not inherit it.

Revision ID: contract_0004
Revises: contract_0003
"""

import sqlalchemy as sa
from alembic import op

revision = "contract_0004"
down_revision = "contract_0003"
branch_labels = None
depends_on = None

COUNTS = ("requests", "prompt_tokens", "completion_tokens", "unknown_requests")
KEY = ("day", "subject", "model_name", "contract_id")
LENGTHS = {"day": 10, "subject": 128, "model_name": 256, "contract_id": 64, "uid": 64}


def upgrade() -> None:
    # Empty in rows from before users had ids.
    _move((*KEY, "uid"), "SELECT *, '' FROM usage_day_before")


def downgrade() -> None:
    names = ", ".join((*KEY, *COUNTS))
    sums = ", ".join((*KEY, *(f"CAST(SUM({name}) AS BIGINT)" for name in COUNTS)))
    _move(KEY, f"SELECT {sums} FROM usage_day_before GROUP BY {', '.join(KEY)}", names)  # noqa: S608 - names of this file


def _move(key: tuple[str, ...], select: str, names: str = "") -> None:
    """Copy the table: SQLite cannot change a primary key in place."""
    op.drop_index("ix_usage_day_subject", "usage_day")
    op.rename_table("usage_day", "usage_day_before")
    added = [name for name in key if name not in KEY]
    op.create_table(
        "usage_day",
        *(sa.Column(name, sa.String(LENGTHS[name]), nullable=False) for name in KEY),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        *(sa.Column(name, sa.String(LENGTHS[name]), nullable=False) for name in added),
        sa.PrimaryKeyConstraint(*key, name="pk_usage_day_of_users" if added else "pk_usage_day"),
    )
    op.execute(f"INSERT INTO usage_day {f'({names}) ' if names else ''}{select}")
    op.drop_table("usage_day_before")
    op.create_index("ix_usage_day_subject", "usage_day", ["subject", "day"])
