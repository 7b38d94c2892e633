"""Gives new databases of tests the tables of all services at once: thousands of members start, and each would migrate for 0.15 s.

The tables are those that the migrations made in the first database of the same kind. A module whose tests are about migrations, or about
databases without tables, overrides the fixture `with_tables`.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection, inspect

from llamesh.kit.config import Settings
from llamesh.kit.database import open_database

PACKAGES = {
    "gateway": "services.gateway",
    "contract": "services.contract",
    "download": "services.download",
    "quant": "services.quant",
    "controller": "controller",
}
"""The package with the migrations of each service that has a database."""


def migrate_all(home: Path, database_url: str = "") -> None:
    """Make the tables of all services, in a database of PostgreSQL or in the files of a home."""
    settings = Settings(home=home, database_url=SecretStr(database_url) if database_url else None)

    async def migrate() -> None:
        for service, package in PACKAGES.items():
            database = open_database(settings, service)
            await database.migrate(package)
            await database.close()

    # The caller may have a loop that runs.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, migrate()).result()


def give_tables(home: Path) -> None:
    """Put files with the tables of all services into a new home, open to nobody else like those that members make."""
    shutil.copytree(_home_with_tables() / "data", home / "data")
    (home / "data").chmod(0o700)
    for file in (home / "data").iterdir():
        file.chmod(0o600)


@cache
def _home_with_tables() -> Path:
    home = Path(tempfile.mkdtemp(prefix="tables-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    migrate_all(home)
    return home


class Recordings:
    """The statements that make the tables of each service in an empty file of SQLite, with the rows of its migrations."""

    def __init__(self, upgrade: Callable[[Connection, str], None]) -> None:
        self._upgrade = upgrade
        self._statements: dict[str, list[str]] = {}

    def upgrade(self, connection: Connection, package: str) -> None:
        """Do what the migrations of a package would do, in an empty file by their recording."""
        empty = connection.dialect.name == "sqlite" and not inspect(connection).has_table("alembic_version")
        if not empty:
            self._upgrade(connection, package)
        elif package in self._statements:
            for statement in self._statements[package]:
                connection.exec_driver_sql(statement)
        else:
            self._upgrade(connection, package)
            self._statements[package] = _recorded(connection)


def _recorded(connection: Connection) -> list[str]:
    made = "SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
    found = connection.exec_driver_sql(made).all()
    tables = [name for kind, name, _ in found if kind == "table"]
    return [*(sql for *_, sql in found), *(row for name in tables for row in _rows(connection, name))]


def _rows(connection: Connection, table: str) -> list[str]:
    """Return the statements that insert the rows of a table."""
    columns = [row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")]
    values = ", ".join(f"quote({column})" for column in columns)
    rows = connection.exec_driver_sql(f"SELECT {values} FROM {table}")
    return [f"INSERT INTO {table} VALUES ({', '.join(row)})" for row in rows]
