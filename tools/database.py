"""Read the mesh's tables: `python tools/database.py status` counts rows, `shell` runs SQL. `make db-status`, `make db-shell`.

Read-only, because each service owns its tables, and a mesh may be running on them. Table names are the same for SQLite files and PostgreSQL
schemas: `gateway.users`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from llamesh.kit.config import Settings
from llamesh.kit.config_loading import WrongSettingsError, load_settings
from llamesh.kit.postgres import read_address

SERVICES = ("gateway", "contract", "download", "controller", "quant")
MAX_ROWS = 1000
FAILURES = (sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError)

Rows = tuple[list[str], list[Sequence[Any]]]
Ask = Callable[[str], Rows]


def sqlite(settings: Settings) -> Ask:
    """Open the SQLite files below LLAMESH_HOME, each as a schema; FileNotFoundError if there are none."""
    files = {name: settings.home / "data" / f"{name}.db" for name in SERVICES}
    present = {name: path for name, path in files.items() if path.exists()}
    if not present:
        raise FileNotFoundError(f"there are no tables in {settings.home / 'data'} yet: `make run` creates them")
    connection = sqlite3.connect("file::memory:", uri=True)
    for name, path in present.items():
        connection.execute(f"ATTACH ? AS {name}", (f"{path.as_uri()}?mode=ro",))

    def ask(sql: str) -> Rows:
        cursor = connection.execute(sql)
        return [item[0] for item in cursor.description or ()], cursor.fetchmany(MAX_ROWS)

    return ask


def postgresql(url: str) -> Ask:
    """Connect to the PostgreSQL server of DATABASE_URL."""
    loop = asyncio.new_event_loop()
    address = read_address(url).dsn
    readonly = {"default_transaction_read_only": "on"}
    connection: Any = loop.run_until_complete(asyncpg.connect(address, server_settings=readonly))

    async def fetched(sql: str) -> Rows:
        statement = await connection.prepare(sql)
        rows = await statement.fetch()
        return [item.name for item in statement.get_attributes()], [tuple(row) for row in rows[:MAX_ROWS]]

    return lambda sql: loop.run_until_complete(fetched(sql))


def status(ask: Ask, *, files: bool) -> None:
    """Print every table with its number of rows."""
    names = [f"'{name}'" for name in SERVICES]
    if files:
        attached = {row[1] for row in ask("PRAGMA database_list")[1]} & set(SERVICES)
        each = [f"SELECT '{name}', name FROM {name}.sqlite_master WHERE type = 'table'" for name in attached]
        query = " UNION ALL ".join(each)
    else:
        query = (
            f"SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema IN ({','.join(names)})"
        )
    found = sorted((schema, table) for schema, table in ask(query)[1] if table != "alembic_version")
    counted = [
        (f"{schema}.{table}", ask(f'SELECT count(*) FROM {schema}."{table}"')[1][0][0]) for schema, table in found
    ]
    show((["table", "rows"], counted))


def shell(ask: Ask) -> None:
    """Run statements, each ended by a semicolon, until the input ends."""
    talking = sys.stdin.isatty()
    if talking:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - it gives input() a history
        print("Read-only. Table names are like gateway.users. End a statement with ;  Press Ctrl-D to quit.")
    statement = ""
    while True:
        try:
            statement += input(("... " if statement else "sql> ") if talking else "") + "\n"
        except EOFError:
            break
        if statement.strip().endswith(";"):
            answer(ask, statement)
            statement = ""
    if statement.strip():
        answer(ask, statement)


def answer(ask: Ask, statement: str) -> None:
    """Print the result of a statement, or its error."""
    try:
        show(ask(statement.strip().removesuffix(";")))
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        print("hint: `make db-status` lists the tables, such as controller.server", file=sys.stderr)


def show(found: Rows) -> None:
    """Print rows in columns."""
    titles, rows = found
    lines = [titles, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    try:
        settings = load_settings()
    except WrongSettingsError as error:
        print(error, file=sys.stderr)
        return 2
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    try:
        ask = postgresql(url) if url else sqlite(settings)
        if list(arguments) == ["shell"]:
            shell(ask)
        else:
            status(ask, files=not url)
    except KeyboardInterrupt:
        return 130
    except FAILURES as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
