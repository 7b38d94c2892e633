"""Connections to a database: for each service one SQLite file, or one schema in PostgreSQL.

A `Pool` bounds how many callers have a connection at the same time. It keeps one connection more than that, which the liveness probe uses:
the probe therefore never waits behind callers.
"""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, NullPool, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from llamesh.kit.postgres import STATEMENT_SHARE, PostgresAddress

MAX_CONNECTIONS = 15
"""Maximum number of connections of one process to PostgreSQL. Callers share all but one, which is for the probe."""
IDLE_CONNECTIONS = 5
"""Number of unused connections to PostgreSQL that stay open."""
SQLITE_READERS = 2
"""Callers that read a SQLite file at the same time."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Connections that callers take in turns."""

    engine: AsyncEngine
    turns: asyncio.Semaphore
    """Held by each caller that has a connection."""
    sessions: async_sessionmaker[AsyncSession] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sessions", async_sessionmaker(self.engine, expire_on_commit=False))


class SqliteConnection(sqlite3.Connection):
    """A connection that ends its statements, and so its transaction, when it is closed.

    SQLite keeps a closed connection, with its locks, until its last statement is finalized. SQLAlchemy closes the connection of a cancelled
    statement, but the traceback of the cancellation holds the cursor: the write lock would last until the garbage collector runs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Open a cursor."""
        cursor = super().cursor(*args, **kwargs)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        """Close the cursors, then the connection. Idempotent."""
        cursors, self._cursors = self._cursors, WeakSet()
        for cursor in cursors:
            cursor.close()
        super().close()


def sqlite_pools(file: Path, seconds: float) -> tuple[Pool, Pool]:
    """Return the connections to a SQLite file for transactions, and those for single statements that read."""
    address = f"sqlite+aiosqlite:///{file}"
    # Parameters are hidden in errors: they would put password hashes and keys into the log.
    # One connection: transactions queue for it, which costs less than polling SQLite's lock.
    writer = create_async_engine(
        address, hide_parameters=True, pool_size=1, max_overflow=0, connect_args={"factory": SqliteConnection}
    )
    # Readers never wait for the writer (WAL). Each step of a transaction that they save is a change of threads.
    reader = create_async_engine(
        address,
        hide_parameters=True,
        pool_size=SQLITE_READERS + 1,
        max_overflow=0,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        connect_args={"factory": SqliteConnection},
    )

    def tune(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        busy = f"busy_timeout={int(seconds * 1000)}"
        for pragma in (busy, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(writer.sync_engine, "connect", tune)
    event.listen(writer.sync_engine, "begin", _begin_sqlite)
    event.listen(reader.sync_engine, "connect", tune)
    return Pool(writer, asyncio.Semaphore(1)), Pool(reader, asyncio.Semaphore(SQLITE_READERS))


def postgres_pools(address: PostgresAddress, schema: str, seconds: float) -> tuple[Pool, Pool]:
    """Return the connections to a schema for transactions, and the same connections for single statements that read."""

    async def connect() -> Any:
        return await address.connect(schema, seconds, command_seconds=seconds * STATEMENT_SHARE)

    writer = create_async_engine(
        "postgresql+asyncpg://",
        pool_pre_ping=True,
        pool_size=IDLE_CONNECTIONS,
        max_overflow=MAX_CONNECTIONS - IDLE_CONNECTIONS,
        hide_parameters=True,
        connect_args={"async_creator_fn": connect},
    )
    event.listen(writer.sync_engine, "invalidate", _cut_off)
    reader = writer.execution_options(isolation_level="AUTOCOMMIT")
    turns = asyncio.Semaphore(MAX_CONNECTIONS - 1)
    return Pool(writer, turns), Pool(reader, turns)


def postgres_for_migrations(address: PostgresAddress, schema: str, seconds: float) -> AsyncEngine:
    """Return an engine whose commands may take as long as a migration takes. It keeps no connection."""

    async def connect() -> Any:
        return await address.connect(schema, seconds, command_seconds=None)

    return create_async_engine(
        "postgresql+asyncpg://", poolclass=NullPool, hide_parameters=True, connect_args={"async_creator_fn": connect}
    )


def _cut_off(connection: Any, _record: object, _error: object) -> None:
    # An orderly close would wait for a server that does not answer.
    connection.driver_connection.terminate()


def _begin_sqlite(connection: Connection) -> None:
    # The driver's own BEGIN comes only before the first write: rows that were read until then could change during the transaction.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
