"""SQL sessions with a deadline, on one SQLite file for each service or on one schema for each service in PostgreSQL.

Each service has its migrations in `<package>/migrations/versions`; `migrate` applies them when the service starts.

Invariant: no operation takes longer than its deadline (LLAMESH_DATABASE_SECONDS) and STATEMENT_SHARE of it for the rollback, even if the
database is stopped, frozen, locked or cut off. A connection that was cut off is discarded. A long wait for a free connection never counts
as an outage of the database.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, DateTime, MetaData, TypeDecorator, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase

from llamesh.kit.circuit_breaker import CircuitBreaker
from llamesh.kit.config import Settings
from llamesh.kit.database_failures import (
    DatabaseRefusedError,
    DatabaseUnreachableError,
    damaged,
    failure_of,
    unavailable,
    unreachable,
)
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pools import Pool, postgres_for_migrations, postgres_pools, sqlite_pools
from llamesh.kit.postgres import STATEMENT_SHARE, read_address
from llamesh.kit.schema import MIGRATION_SECONDS, upgrade
from llamesh.locations import make_private

__all__ = [
    "Base",
    "Database",
    "DatabaseRefusedError",
    "DatabaseUnreachableError",
    "Timestamp",
    "is_unavailable",
    "open_database",
]

SQLITE_SHARE = 2.0
"""Factor of the deadline of a SQLite operation: once for the lock, once for the queue of this process's transactions."""

Guard = Callable[[AsyncSession], Awaitable[None]]

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base class of all tables. The migrations of a service create only the tables of that service."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {int: BigInteger}  # noqa: RUF012 - SQLAlchemy's own convention


class Timestamp(TypeDecorator[datetime]):
    """A time in UTC with microseconds, on PostgreSQL and on SQLite, which stores no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Add the time zone that SQLite does not store."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Database:
    """One service's tables. Close it when done.

    `seconds` is the deadline of one operation, the wait for a connection included. `place` is the SQLite file, or the hosts of PostgreSQL,
    whose schema `schema` is.
    `migrations` is the engine that migrations use; None: the writer's. `clock` is monotonic.
    """

    def __init__(
        self,
        writer: Pool,
        reader: Pool,
        seconds: float,
        *,
        place: Path | str,
        schema: str | None = None,
        migrations: AsyncEngine | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schema = schema
        self.place = os.fspath(place)
        """Place of the database for messages: hosts of PostgreSQL, or a file."""
        self.breaker = CircuitBreaker(clock)
        """Whether the database is known not to answer."""
        self._writer = writer
        self._reader = reader
        self._seconds = seconds
        self._file = place if isinstance(place, Path) else None
        self._migrations = migrations or writer.engine
        self._identity: tuple[int, int] | None = None
        self._waiting_for_tables = False
        self._guard: Guard | None = None

    @property
    def engine(self) -> AsyncEngine:
        """SQLAlchemy's engine, for tools and tests."""
        return self._writer.engine

    def guard_with(self, guard: Guard) -> None:
        """Call `guard` first in every later transaction. It raises if this process may no longer write (`Lease.guard`)."""
        self._guard = guard

    @asynccontextmanager
    async def begin(self, *, guarded: bool = True) -> AsyncIterator[AsyncSession]:
        """Open a session in one transaction, to write or to read rows that belong together. Commits at the end, rolls back on an error.

        SQLite runs one transaction at a time. On PostgreSQL, lock the rows that a decision depends on (`with_for_update()`).
        If the caller is cancelled, the transaction is rolled back before this ends, or the commit had begun and the transaction may have
        happened. A connection whose statement was cancelled is closed. Without `guarded`, for reads, the guard is not called.

        Raises:
            MeshError: COMPONENT_UNAVAILABLE if the database does not answer, is locked or too slow; after a failed commit the transaction
                may or may not have happened. STORAGE_FULL; DATABASE_DAMAGED; INVALID_FIELD if PostgreSQL cannot represent a value, for
                instance text with a zero character.
            IntegrityError: the transaction breaks a constraint of the tables.
        """
        self._admit()
        async with self._bounded(self._writer.turns), self._writer.sessions() as session, session.begin():
            if guarded and self._guard is not None:
                await self._guard(session)
            yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session for one SELECT, without the cost of a transaction. It sees everything that was committed before.

        Errors as in `begin`.
        """
        self._admit()
        async with self._bounded(self._reader.turns), self._reader.sessions() as session:
            yield session

    @asynccontextmanager
    async def owned(self) -> AsyncIterator[float | None]:
        """Keep the guard's lock for a change outside the database that only the owner may make. Yields the seconds that the block may take.

        None: without a guard any time. Nobody becomes the owner while the block runs, unless the server ends the transaction because this
        process was frozen for longer than `postgres.IDLE_SHARE` of the deadline. Errors as in `begin`.
        """
        if self._guard is None:
            yield None
            return
        now = asyncio.get_running_loop().time
        began = now()
        async with self.begin():
            # The rest of the deadline is for the end of the transaction.
            yield self._seconds * STATEMENT_SHARE - (now() - began)

    async def probe(self) -> None:
        """Check that the database answers. Errors as in `begin`. Probes even during a known outage, and does not wait for other callers."""
        self._check_file()
        async with self._bounded(), self._reader.sessions() as session:
            await session.execute(text("SELECT count(*) FROM sqlite_schema" if self._file else "SELECT 1"))

    async def migrate(self, package: str) -> None:
        """Apply the migrations of a package, for instance "services.gateway".

        Raises:
            DatabaseRefusedError: the server refuses the connection, or the address is wrong.
            StartRefused: the tables are newer than this program.
            MeshError: as in `begin`. Until a later attempt succeeds, all operations are refused as COMPONENT_UNAVAILABLE.
        """
        self._waiting_for_tables = True
        async with self._bounded(seconds=MIGRATION_SECONDS):
            # Connecting has the short deadline, so that a frozen server is noticed early.
            async with asyncio.timeout(self._seconds * SQLITE_SHARE):
                connection = await self._migrations.connect()
            try:
                async with connection.begin():
                    await upgrade(connection, package, self.schema)
            finally:
                await connection.close()
        self._waiting_for_tables = False

    async def close(self) -> None:
        """Close all connections."""
        await self._reader.engine.dispose()
        await self._writer.engine.dispose()

    async def lock(self, session: AsyncSession, name: str) -> None:
        """Make transactions that take the lock of this name run one at a time, to their ends. A SQLite file has a single writer anyway."""
        if self.schema:
            await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))

    def _admit(self) -> None:
        self._check_file()
        if self._waiting_for_tables:
            raise unreachable("the database is not ready: this service waits for it")
        if not self.breaker.allows():
            raise unreachable() from self.breaker.cause

    def _check_file(self) -> None:
        """Refuse a file that was removed or replaced: SQLite would go on writing to the old one, and lose everything."""
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
        """Enforce the deadline, the wait for a turn included. Translate failures to MeshErrors and record whether the database answers."""
        limit = seconds or self._seconds * (SQLITE_SHARE if self._file else 1.0)
        now = asyncio.get_running_loop().time
        began, turn = now(), float("inf")
        try:
            async with asyncio.timeout(limit) as deadline, turns or nullcontext():
                turn = now()
                yield
        except Exception as error:
            # After a long wait for a turn, too little time was left for a statement: this is congestion, not an outage.
            if deadline.expired() and isinstance(error, TimeoutError) and turn - began > limit * (1 - STATEMENT_SHARE):
                raise unavailable("too many calls wait for the database") from error
            failure = error if isinstance(error, MeshError) else failure_of(error)
            if failure is None:
                raise
            if self._file and failure.reason == Reason.ERROR_REASON_DATABASE_DAMAGED:
                failure = damaged(self._shown_file, "is damaged")
            if isinstance(failure, DatabaseUnreachableError):
                self.breaker.record_failure(error)
            if failure is error:
                raise
            raise failure from error
        self.breaker.record_success()


def is_unavailable(error: MeshError) -> bool:
    """Whether a failure of the database may end by itself, so that callers use cached values and retry writes later."""
    return error.reason in (Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, Reason.ERROR_REASON_STORAGE_FULL)


def open_database(settings: Settings, service: str) -> Database:
    """Open the database of a service without connecting; ValueError if DATABASE_URL is not an address of PostgreSQL."""
    seconds = settings.database_seconds
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    if url:
        address = read_address(url)
        writer, reader = postgres_pools(address, service, seconds)
        migrations = postgres_for_migrations(address, service, seconds)
        return Database(writer, reader, seconds, schema=service, place=address.place, migrations=migrations)
    file = make_private(settings.home / "data") / f"{service}.db"
    writer, reader = sqlite_pools(file, seconds)
    return Database(writer, reader, seconds, place=file)
