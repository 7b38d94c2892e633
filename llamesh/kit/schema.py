"""Applies the migrations of a service at its start, and refuses tables of a newer program.

Invariant: of two replicas that start at once, an advisory lock of PostgreSQL lets one migrate; the other replica then finds the tables up
to date.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from llamesh.kit.errors import StartRefused

MIGRATION_SECONDS = 120.0
"""Deadline of the migrations at start, the wait for another replica's migrations included."""
_REVISION = re.compile(r"""^revision\b[^=\n]*=\s*["']([^"']+)""", re.MULTILINE)
_FOLLOWED = re.compile(r"""^down_revision\b[^=\n]*=\s*["']([^"']+)""", re.MULTILINE)


async def upgrade(connection: AsyncConnection, package: str, schema: str | None) -> None:
    """Apply the migrations of a package in the transaction of the connection.

    Raises StartRefused if the tables have a version that this program does not know.
    """
    if schema:
        # Deadlines of calls are too short for a migration; the caller has a deadline for the whole.
        await connection.execute(text("SET LOCAL statement_timeout = 0"))
        await connection.execute(text("SET LOCAL lock_timeout = 0"))
        # Between its statements a migration imports and computes. One that is frozen still ends, with its lock.
        idle = int(MIGRATION_SECONDS * 1000)
        await connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = {idle}"))
        await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"llamesh.{schema}"})
        await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{schema}"'))
    await connection.run_sync(_upgrade, package)


def _upgrade(connection: Connection, package: str) -> None:
    versions = Path(__file__).resolve().parents[2].joinpath(*package.split("."), "migrations", "versions")
    known, newest = _known(versions)
    present = _present(connection)
    if unknown := present - known:
        raise StartRefused(
            f"the tables of {package} were made by a newer program: they are at version {', '.join(sorted(unknown))}, this program "
            f"knows them up to {', '.join(sorted(newest))}. Start the newer program again, or restore a backup from before its start"
        )
    if present == newest:
        return
    # Imported only if needed: the import takes longer than the rest of a service's start.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(versions))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _known(versions: Path) -> tuple[set[str], set[str]]:
    """Return all versions that this program knows, and the newest of them."""
    scripts = [path.read_text(encoding="utf-8") for path in versions.glob("*.py")]
    names = {name for script in scripts for name in _REVISION.findall(script)}
    return names, names - {name for script in scripts for name in _FOLLOWED.findall(script)}


def _present(connection: Connection) -> set[str]:
    if not inspect(connection).has_table("alembic_version"):
        return set()
    return set(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
