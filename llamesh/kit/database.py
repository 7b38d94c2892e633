"""SQL sessions: a SQLite file for each service, or a schema for each service in one PostgreSQL. The same code on both.

Each service's migrations lie in `<package>/migrations/versions` and are brought to the newest by `migrate` at its start.
"""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Connection, DateTime, MetaData, TypeDecorator, event, inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from llamesh.kit.config import Settings, make_private
from llamesh.kit.errors import MeshError, Reason

DATA_EXCEPTION = "22"
"""Class of PostgreSQL's error codes (SQLSTATE) for values that are at fault, not the statement."""

DISK_FULL = "53100"
"""PostgreSQL's code for it."""

SQLITE_FULL = "database or disk is full"
"""SQLite's words for it (SQLITE_FULL)."""

_REVISION = re.compile(r"""^revision\b[^=\n]*=\s*["']([^"']+)""", re.MULTILINE)
_FOLLOWED = re.compile(r"""^down_revision\b[^=\n]*=\s*["']([^"']+)""", re.MULTILINE)

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
    """One service's tables. Close it when done."""

    def __init__(self, engine: AsyncEngine, reader: AsyncEngine, schema: str | None) -> None:
        self.engine = engine
        self.schema = schema
        self._reader = reader
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        self._readers = async_sessionmaker(reader, expire_on_commit=False)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """A session in one transaction: committed at the end, rolled back on an error. To write, or to read what belongs together.

        INVALID_FIELD where PostgreSQL cannot represent a value, for instance text with a zero character; STORAGE_FULL.

        On SQLite one transaction at a time; on PostgreSQL lock what you read to decide on it (`with_for_update()`).
        """
        with _told_apart():
            async with self._sessions() as session, session.begin():
                yield session

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session for one statement that reads, without the cost of a transaction: what was committed before is seen.

        Errors as in `begin`.
        """
        with _told_apart():
            async with self._readers() as session:
                yield session

    async def migrate(self, package: str) -> None:
        """Bring the tables of a package (for instance "services.gateway") to the newest version.

        ConnectionError where the server does not answer.
        """
        try:
            async with self.engine.begin() as connection:
                if self.schema:
                    await self._own_schema(connection)
                await connection.run_sync(_upgrade, package)
        except (ConnectionError, TimeoutError, socket.gaierror) as error:
            server = f"{self.engine.url.host}:{self.engine.url.port or 5432}"
            raise ConnectionError(
                f"the database at {server} does not answer ({error.strerror or error}): start it, or correct DATABASE_URL"
            ) from error

    async def _own_schema(self, connection: AsyncConnection) -> None:
        # Two replicas of a service may start at once: the lock lets one migrate and the other find it done.
        await connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": f"llamesh.{self.schema}"}
        )
        await connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{self.schema}"'))

    async def close(self) -> None:
        """Give back all connections."""
        await self._reader.dispose()
        await self.engine.dispose()


def open_database(settings: Settings, service: str) -> Database:
    """Open a service's database; ValueError where DATABASE_URL names something other than PostgreSQL or SQLite."""
    # Parameters are hidden in errors: they would put password hashes and keys into the log.
    url = settings.database_url.get_secret_value() if settings.database_url else ""
    if re.match(r"postgres(ql)?(\+\w+)?://", url):
        target = make_url(url).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(
            target,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args={"server_settings": {"search_path": service}},
        )
        return Database(engine, engine.execution_options(isolation_level="AUTOCOMMIT"), service)
    if url:
        raise ValueError("DATABASE_URL must begin with postgresql://; unset it for SQLite files below LLAMESH_HOME")
    directory = make_private(settings.home / "data")
    address = f"sqlite+aiosqlite:///{directory / service}.db"
    # One connection: transactions queue for it, which costs less than to poll for SQLite's lock.
    engine = create_async_engine(address, hide_parameters=True, pool_size=1, max_overflow=0, pool_timeout=10)
    event.listen(engine.sync_engine, "connect", _tune_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    # Readers never wait for the writer (WAL); each step of a transaction that they spare is a change of threads.
    reader = create_async_engine(
        address,
        hide_parameters=True,
        pool_size=2,
        max_overflow=0,
        pool_timeout=10,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
    )
    event.listen(reader.sync_engine, "connect", _tune_sqlite)
    return Database(engine, reader, None)


@contextmanager
def _told_apart() -> Iterator[None]:
    """Tell a value that PostgreSQL cannot represent, and a full disk, from a failure of the database."""
    try:
        yield
    except DBAPIError as error:
        state = str(getattr(error.orig, "sqlstate", ""))
        if state.startswith(DATA_EXCEPTION):
            raise MeshError(
                Reason.ERROR_REASON_INVALID_FIELD, "a value of the request cannot be stored", {"fields": ""}
            ) from error
        if state == DISK_FULL or SQLITE_FULL in str(error.orig):
            raise MeshError(
                Reason.ERROR_REASON_STORAGE_FULL, "the disk is full: nothing was written", retry_after=30
            ) from error
        raise


def _begin_sqlite(connection: Connection) -> None:
    # The driver's own BEGIN comes only before the first write: what was read until then could change under the transaction.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _tune_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _upgrade(connection: Connection, package: str) -> None:
    versions = Path(__file__).resolve().parents[2].joinpath(*package.split("."), "migrations", "versions")
    if _is_newest(connection, versions):
        return
    # Imported only when there is something to do: it takes longer than the rest of a service's start.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(versions))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _is_newest(connection: Connection, versions: Path) -> bool:
    """Whether the tables are at the one version that no other version follows."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    scripts = [path.read_text() for path in versions.glob("*.py")]
    names = {name for script in scripts for name in _REVISION.findall(script)}
    followed = {name for script in scripts for name in _FOLLOWED.findall(script)}
    present = set(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())
    return len(present) == 1 and present == names - followed
