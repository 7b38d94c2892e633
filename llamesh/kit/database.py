"""SQL sessions: a SQLite file for each service, or a schema for each service in one PostgreSQL. The same code on both.

Each service's migrations lie in `<package>/migrations/versions` and are brought to the newest by `migrate` at its start.

Invariant: no operation lasts longer than its deadline (LLAMESH_DATABASE_SECONDS), whatever the database does: it may be stopped, frozen,
locked or cut off. A connection that was cut off is thrown away. Waiting for a connection says nothing about the database: it is never taken
for an outage.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Connection, DateTime, MetaData, TypeDecorator, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from llamesh.kit.config import Settings, make_private
from llamesh.kit.database_failures import (
    DatabaseAwayError,
    DatabaseRefusedError,
    away,
    damaged,
    failure_of,
    unavailable,
)
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.outage import Outage
from llamesh.kit.postgres import STATEMENT_SHARE, PostgresAddress, read_address
from llamesh.kit.schema import upgrade

__all__ = [
    "Base",
    "Database",
    "DatabaseAwayError",
    "DatabaseRefusedError",
    "Timestamp",
    "is_unavailable",
    "open_database",
]

MIGRATION_SECONDS = 120.0
"""How long the tables may take to be brought to the newest version, another replica's turn included."""

SQLITE_SHARE = 2.0
"""A SQLite operation has twice the deadline: once for the lock, once for the queue of this process's transactions."""

CONNECTIONS = 15
"""Most connections of one process to PostgreSQL. Callers share all but one: the probe never waits for them."""
IDLE_CONNECTIONS = 5
"""So many of them are kept open."""
SQLITE_READERS = 2
"""Callers that read a SQLite file at the same time; the probe has a connection beside them."""

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Common base of all tables; each service's migrations make only its own."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {int: BigInteger}  # noqa: RUF012 - SQLAlchemy's own convention


class Timestamp(TypeDecorator[datetime]):
    """A moment in UTC, with microseconds, the same on SQLite (which knows no zones) and PostgreSQL."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Give back the zone that SQLite dropped."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Database:
    """One service's tables. Close it when done.

    `seconds` is the deadline of one operation, the wait for a connection included. `turns` and `reader_turns` count the connections that
    callers may have of `engine` and `reader`, fewer than the pool has. `file` is the SQLite file. `clock` is monotonic.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        reader: AsyncEngine,
        schema: str | None,
        *,
        turns: asyncio.Semaphore,
        reader_turns: asyncio.Semaphore,
        seconds: float,
        place: str,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.schema = schema
        self.place = place
        """Where it is, for people: hosts of PostgreSQL or a file."""
        self.outage = Outage(clock)
        """What is known of its absence."""
        self._reader = reader
        self._turns = turns
        self._reader_turns = reader_turns
        self._seconds = seconds
        self._file = file
        self._identity: tuple[int, int] | None = None
        self._waiting_for_tables = False
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._readers = async_sessionmaker(reader, expire_on_commit=False)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """A session in one transaction: committed at the end, rolled back on an error. To write, or to read what belongs together.

        On SQLite one transaction at a time; on PostgreSQL lock what you read to decide on it (`with_for_update()`).

        Raises:
            MeshError: COMPONENT_UNAVAILABLE if the database is away, locked or too slow; after a failed commit it is not known whether
                the transaction happened. STORAGE_FULL; DATABASE_DAMAGED; INVALID_FIELD if PostgreSQL cannot represent a value, for
                instance text with a zero character.
            IntegrityError: a rule of the tables is broken.
        """
        self._admit()
        async with self._bounded(self._turns), self._sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for one statement that reads, without the cost of a transaction: what was committed before is seen.

        Errors as in `begin`.
        """
        self._admit()
        async with self._bounded(self._reader_turns), self._readers() as session:
            yield session

    async def probe(self) -> None:
        """Ask the database for a sign of life. Errors as in `begin`; neither a known outage nor other callers keep it from asking."""
        self._check_file()
        async with self._bounded(), self._readers() as session:
            await session.execute(text("SELECT count(*) FROM sqlite_schema" if self._file else "SELECT 1"))

    async def migrate(self, package: str) -> None:
        """Bring the tables of a package (for instance "services.gateway") to the newest version.

        Raises:
            DatabaseRefusedError: the server or the address refuses us.
            StartRefused: the tables are newer than this program.
            MeshError: as in `begin`. Operations are refused as COMPONENT_UNAVAILABLE until a later attempt succeeds.
        """
        self._waiting_for_tables = True
        async with self._bounded(seconds=MIGRATION_SECONDS):
            # The first sign of life has the short deadline: a frozen server is noticed at once.
            async with asyncio.timeout(self._seconds * SQLITE_SHARE):
                connection = await self.engine.connect()
            try:
                async with connection.begin():
                    await upgrade(connection, package, self.schema)
            finally:
                await connection.close()
        self._waiting_for_tables = False

    async def close(self) -> None:
        """Give back all connections."""
        await self._reader.dispose()
        await self.engine.dispose()

    def _admit(self) -> None:
        self._check_file()
        if self._waiting_for_tables:
            raise away("the database is not ready: this service waits for it")
        if not self.outage.admits():
            raise away() from self.outage.cause

    def _check_file(self) -> None:
        """SQLite goes on with a file that was removed or replaced, and what it writes is lost."""
        if self._file is None:
            return
        try:
            found = self._file.stat()
        except FileNotFoundError:
            if self._identity is not None:
                raise damaged(self._shown_file, "is missing: it was removed while this service used it") from None
            return
        identity = (found.st_dev, found.st_ino)
        if self._identity not in (None, identity):
            raise damaged(self._shown_file, "was replaced while this service used it")
        self._identity = identity

    @property
    def _shown_file(self) -> str:
        return f"data/{self._file.name}" if self._file else ""

    @asynccontextmanager
    async def _bounded(
        self, turns: asyncio.Semaphore | None = None, seconds: float | None = None
    ) -> AsyncIterator[None]:
        """Keep the deadline, the wait for a turn included; tell failures apart and note whether the database answers."""
        limit = seconds or self._seconds * (SQLITE_SHARE if self._file else 1.0)
        now = asyncio.get_running_loop().time
        began, turn = now(), float("inf")
        try:
            async with asyncio.timeout(limit) as deadline, turns or nullcontext():
                turn = now()
                yield
        except Exception as error:
            # What is left after a long wait is shorter than what the database may take.
            if deadline.expired() and isinstance(error, TimeoutError) and turn - began > limit * (1 - STATEMENT_SHARE):
                raise unavailable("too many calls wait for the database") from error
            failure = error if isinstance(error, MeshError) else failure_of(error)
            if failure is None:
                raise
            if self._file and failure.reason == Reason.ERROR_REASON_DATABASE_DAMAGED:
                failure = damaged(self._shown_file, "is damaged")
            if isinstance(failure, DatabaseAwayError):
                self.outage.failed(error)
            if failure is error:
                raise
            raise failure from error
        self.outage.answered()


def is_unavailable(error: MeshError) -> bool:
    """Whether a failure of the database may pass by itself: what is known may be used, and what is to be written kept for later."""
    return error.reason in (Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, Reason.ERROR_REASON_STORAGE_FULL)


def open_database(settings: Settings, service: str) -> Database:
    """Open a service's database; ValueError if DATABASE_URL names something other than PostgreSQL. Nothing is connected yet."""
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    if url:
        return _open_postgres(read_address(url), service, settings.database_seconds)
    file = make_private(settings.home / "data") / f"{service}.db"
    address, seconds = f"sqlite+aiosqlite:///{file}", settings.database_seconds
    # Parameters are hidden in errors: they would put password hashes and keys into the log.
    # One connection: transactions queue for it, which costs less than to poll for SQLite's lock.
    engine = create_async_engine(address, hide_parameters=True, pool_size=1, max_overflow=0)
    # Readers never wait for the writer (WAL); each step of a transaction that they spare is a change of threads.
    reader = create_async_engine(
        address,
        hide_parameters=True,
        pool_size=SQLITE_READERS + 1,
        max_overflow=0,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
    )

    def tune(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        busy = f"busy_timeout={int(seconds * 1000)}"
        for pragma in (busy, "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", tune)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    event.listen(reader.sync_engine, "connect", tune)
    return Database(
        engine,
        reader,
        None,
        turns=asyncio.Semaphore(1),
        reader_turns=asyncio.Semaphore(SQLITE_READERS),
        seconds=seconds,
        place=os.fspath(file),
        file=file,
    )


def _open_postgres(address: PostgresAddress, schema: str, seconds: float) -> Database:
    async def connect() -> Any:
        return await address.connect(schema, seconds)

    engine = create_async_engine(
        "postgresql+asyncpg://",
        pool_pre_ping=True,
        pool_size=IDLE_CONNECTIONS,
        max_overflow=CONNECTIONS - IDLE_CONNECTIONS,
        hide_parameters=True,
        connect_args={"async_creator_fn": connect},
    )
    event.listen(engine.sync_engine, "invalidate", _cut_off)
    reader = engine.execution_options(isolation_level="AUTOCOMMIT")
    turns = asyncio.Semaphore(CONNECTIONS - 1)
    return Database(engine, reader, schema, turns=turns, reader_turns=turns, seconds=seconds, place=address.place)


def _cut_off(connection: Any, _record: object, _error: object) -> None:
    # An orderly goodbye would wait for a server that does not answer.
    connection.driver_connection.terminate()


def _begin_sqlite(connection: Connection) -> None:
    # The driver's own BEGIN comes only before the first write: what was read until then could change under the transaction.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
