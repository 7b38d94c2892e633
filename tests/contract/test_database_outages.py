"""Whatever the database does, an operation ends within its deadline with a reason of the contract, and works again afterwards."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from llamesh.kit.config import Settings
from llamesh.kit.database import SQLITE_SHARE, Database, DatabaseRefusedError, open_database
from llamesh.kit.errors import MeshError, StartRefused, name_of
from llamesh.kit.pools import MAX_CONNECTIONS
from llamesh.kit.postgres import LOCK_SHARE, STATEMENT_SHARE
from tests.contract.patience import CALM_SECONDS, available
from tests.own_postgres import OwnPostgres, own_postgres

SECONDS = 1.0
"""LLAMESH_DATABASE_SECONDS of these tests."""
LONGEST = 30 * SECONDS
"""What an operation may take at most on a busy machine; without a deadline it would take 60 s, or for ever."""


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as running:
        yield running


def at(settings: Settings, url: str, seconds: float = CALM_SECONDS) -> Settings:
    return settings.model_copy(update={"database_url": SecretStr(url), "database_seconds": seconds})


@pytest.fixture
async def database(one_settings: Settings, server: OwnPostgres) -> AsyncIterator[Database]:
    tables = (
        "DROP SCHEMA IF EXISTS probe CASCADE",
        "CREATE SCHEMA probe",
        "CREATE TABLE probe.probe_row (id INTEGER PRIMARY KEY)",
    )
    await asyncio.to_thread(server.sql, *tables)
    database = open_database(at(one_settings, server.url(), SECONDS), "probe")
    yield database
    server.thaw()
    await database.close()


async def write(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("INSERT INTO probe_row SELECT coalesce(max(id), 0) + 1 FROM probe_row"))


async def read(database: Database) -> None:
    async with database.read() as session:
        await session.execute(text("SELECT count(*) FROM probe_row"))


async def read_and_write(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("SELECT count(*) FROM probe_row"))
        await session.execute(text("INSERT INTO probe_row SELECT coalesce(max(id), 0) + 1 FROM probe_row"))


Operation = Callable[[Database], Awaitable[None]]
every_operation = pytest.mark.parametrize("operation", [write, read, read_and_write])


async def works(operation: Operation, database: Database) -> None:
    """Run an operation on a database that answers. Its deadline is short: a busy machine may exceed it a few times."""
    await available(lambda: operation(database))


async def refused(work: Awaitable[Any]) -> MeshError:
    """The refusal that an operation ends with, within its deadline."""
    with pytest.raises(MeshError) as caught:
        await asyncio.wait_for(work, LONGEST)
    return caught.value


def assert_unavailable(error: MeshError) -> None:
    assert name_of(error.reason) == "COMPONENT_UNAVAILABLE", error
    assert error.metadata == {"component": "database"}
    assert error.retry_after


@every_operation
async def test_a_server_that_freezes_between_two_statements_of_the_liveness_check_of_a_connection_is_unavailable(
    operation: Operation, database: Database, server: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool checks a connection before a caller gets it: begin, an empty statement, rollback."""
    await works(operation, database)
    fetchrow = asyncpg.Connection.fetchrow

    async def frozen(connection: asyncpg.Connection, *arguments: Any, **options: Any) -> Any:
        server.freeze()
        return await fetchrow(connection, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetchrow", frozen)
    assert_unavailable(await refused(operation(database)))
    monkeypatch.undo()
    server.thaw()
    await works(operation, database)


@every_operation
async def test_a_stopped_server_is_unavailable_and_used_again_when_it_is_back(
    operation: Operation, database: Database, server: OwnPostgres
) -> None:
    await works(operation, database)
    await asyncio.to_thread(server.stop)
    try:
        for _ in range(3):
            assert_unavailable(await refused(operation(database)))
    finally:
        await asyncio.to_thread(server.start)
    await works(operation, database)


@every_operation
async def test_a_frozen_server_is_cut_off_at_the_deadline(
    operation: Operation, database: Database, server: OwnPostgres
) -> None:
    await works(operation, database)
    server.freeze()
    # The second finds no connection in the pool and has to make one.
    for _ in range(2):
        assert_unavailable(await refused(operation(database)))
    # While it is known to be unreachable, callers do not wait for the deadline again, but for one trial a second.
    answers = await asyncio.gather(*(refused(operation(database)) for _ in range(20)))
    assert {name_of(answer.reason) for answer in answers} == {"COMPONENT_UNAVAILABLE"}
    server.thaw()
    await works(operation, database)


async def test_a_server_that_freezes_within_a_transaction_is_cut_off(database: Database, server: OwnPostgres) -> None:
    async def frozen_half_way() -> None:
        async with database.begin() as session:
            await session.execute(text("INSERT INTO probe_row VALUES (100)"))
            server.freeze()
            await session.execute(text("INSERT INTO probe_row VALUES (200)"))

    async def frozen_before_the_commit() -> None:
        async with database.begin() as session:
            # Whether this commit happens is decided when the server goes on.
            await session.execute(text("INSERT INTO probe_row VALUES (300)"))
            server.freeze()

    for work in (frozen_half_way, frozen_before_the_commit):
        assert_unavailable(await refused(work()))
        server.thaw()
        await works(write, database)


@pytest.mark.usefixtures("database")
async def test_a_locked_table_is_unavailable_and_no_outage(
    one_settings: Settings, server: OwnPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the timeouts, the lock's is the first. Here the others are far, so that a busy machine does not exceed them."""
    assert LOCK_SHARE < STATEMENT_SHARE < 1
    monkeypatch.setattr("llamesh.kit.postgres.LOCK_SHARE", SECONDS / CALM_SECONDS)
    patient = open_database(at(one_settings, server.url()), "probe")
    locker = await asyncpg.connect(server.url())
    transaction = locker.transaction()
    await transaction.start()
    await locker.execute("LOCK TABLE probe.probe_row IN ACCESS EXCLUSIVE MODE")
    for operation in (write, read):
        error = await refused(operation(patient))
        assert_unavailable(error)
        assert "lock" in error.message
    # Other tables are used as before.
    async with patient.read() as session:
        await session.execute(text("SELECT 1"))
    await transaction.rollback()
    await locker.close()
    await write(patient)
    await patient.close()


async def test_a_server_that_the_network_cuts_off_is_unavailable(one_settings: Settings) -> None:
    """Connections are accepted by the kernel, and nothing is ever answered: as behind a firewall that drops packets."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql://ada@127.0.0.1:{silent.getsockname()[1]}/x"
        for parameters in ("", "?sslmode=require", "?connect_timeout=30"):
            database = open_database(at(one_settings, address + parameters, SECONDS), "gateway")
            assert_unavailable(await refused(database.migrate("services.gateway")))
            assert_unavailable(await refused(database.probe()))
            await database.close()


async def test_an_integrity_error_is_not_taken_for_an_outage(database: Database) -> None:
    for _ in range(2):
        with pytest.raises(IntegrityError):
            async with database.begin() as session:
                await session.execute(text("INSERT INTO probe_row VALUES (7), (7)"))


async def test_a_database_error_that_no_retry_cures_names_its_cause(
    one_settings: Settings, server: OwnPostgres
) -> None:
    cases = {
        server.url("nowhere"): "nowhere",
        server.url(parameters="sslmode=require"): "TLS",
        server.url(parameters="sslmode=verify-full&sslrootcert=/nowhere/root.pem"): "/nowhere/root.pem",
        server.url(parameters="options=-c%20no_such_setting%3D1"): "no_such_setting",
    }
    for url, words in cases.items():
        database = open_database(at(one_settings, url), "gateway")
        with pytest.raises(DatabaseRefusedError) as caught:
            await database.migrate("services.gateway")
        assert words in str(caught.value.__cause__), url
        await database.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://x/y", "postgresql://"),
        ("postgresql://db/x?sslmod=require", "'sslmod'"),
        ("postgresql://db/x?sslmode=yes", "sslmode must be one of"),
        ("postgresql://db/x?connect_timeout=soon", "connect_timeout"),
        ("postgresql://ada:secret@db:99999/x", "port"),
        ("postgresql://ada:secret@db:none/x", "port"),
    ],
)
def test_an_address_that_is_not_understood_is_refused_by_name(
    url: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (error,) = caught.value.errors(include_input=False)
    assert (error["loc"], words in error["msg"], "secret" in error["msg"]) == (("DATABASE_URL",), True, False), error


async def test_standard_parameters_reach_the_server(one_settings: Settings, server: OwnPostgres) -> None:
    parameters = "application_name=ours&connect_timeout=3&sslmode=prefer&target_session_attrs=read-write"
    for url in (
        server.url(parameters=parameters),
        server.url(parameters=parameters).replace(f"127.0.0.1:{server.port}", f"127.0.0.1:1,127.0.0.1:{server.port}"),
        f"postgres:///postgres?host={server.data}&port={server.port}&user=postgres&application_name=ours",
    ):
        database = open_database(at(one_settings, url), "probe")
        async with database.read() as session:
            assert (await session.execute(text("SHOW application_name"))).scalar_one() == "ours"
        await database.close()


async def test_tables_of_a_newer_program_are_refused_with_both_versions(settings: Settings) -> None:
    database = open_database(settings, "gateway")
    await database.migrate("services.gateway")
    async with database.begin() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = 'gateway_9999'"))
    with pytest.raises(StartRefused, match=r"gateway_9999.*gateway_0"):
        await database.migrate("services.gateway")
    await database.close()


async def test_a_locked_sqlite_file_is_unavailable(one_settings: Settings) -> None:
    settings = one_settings.model_copy(update={"database_seconds": SECONDS})
    database = open_database(settings, "probe")
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE probe_row (id INTEGER PRIMARY KEY)"))
    other = sqlite3.connect(settings.home / "data" / "probe.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert_unavailable(await refused(write(database)))
    other.execute("COMMIT")
    other.close()
    await works(write, database)
    await database.close()


async def test_calls_that_wait_for_a_connection_are_no_outage(settings: Settings) -> None:
    """Calls hold every connection that callers may have, longer than others can wait: the database answers all the time."""
    deadline = 3.0
    calm = open_database(settings.model_copy(update={"database_seconds": CALM_SECONDS}), "probe")
    on_file = settings.database_url is None
    seconds = deadline / SQLITE_SHARE if on_file else deadline
    hurried = Database(calm._writer, calm._reader, seconds, place=calm._file or "")
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def hold() -> None:
        async with calm.begin() as session:
            await session.execute(text("SELECT 1"))
            begun.release()
            await go_on.wait()

    async def need_more_time_than_is_left() -> None:
        async with hurried.begin() as session:
            await session.execute(text("SELECT 1"))
            await asyncio.sleep(deadline)

    holders = [asyncio.create_task(hold()) for _ in range(1 if on_file else MAX_CONNECTIONS - 1)]
    for _ in holders:
        await begun.acquire()
    waiting = [asyncio.create_task(refused(need_more_time_than_is_left())) for _ in range(2 * len(holders))]
    # The probe waits for none of them.
    await calm.probe()
    # Those that wait get a connection when a third of their time is left.
    await asyncio.sleep(2 / 3 * deadline)
    go_on.set()
    for error in await asyncio.gather(*waiting):
        assert_unavailable(error)
        assert error.message == "too many calls wait for the database"
    await asyncio.gather(*holders)
    assert hurried.breaker.cause is None
    async with calm.read() as session:
        await session.execute(text("SELECT 1"))
    await calm.close()


def overwrite(file: Path) -> None:
    file.write_bytes(b"nothing that SQLite knows" * 1000)


def replace(file: Path) -> None:
    other = file.with_suffix(".other")
    sqlite3.connect(other).close()
    other.touch()
    other.rename(file)


@pytest.mark.parametrize(("harm", "words"), [(Path.unlink, "missing"), (overwrite, "damaged"), (replace, "replaced")])
async def test_a_sqlite_file_that_is_harmed_while_it_is_used_is_named(
    one_settings: Settings, harm: Callable[[Path], None], words: str
) -> None:
    database = open_database(one_settings, "probe")
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE probe_row (id INTEGER PRIMARY KEY)"))
    await write(database)
    file = one_settings.home / "data" / "probe.db"
    async with database.engine.connect() as connection:
        await connection.exec_driver_sql("COMMIT")
        await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        await connection.exec_driver_sql("BEGIN")
    await database.engine.dispose()
    await database._reader.engine.dispose()
    harm(file)
    for operation in (write, read):
        error = await refused(operation(database))
        assert name_of(error.reason) == "DATABASE_DAMAGED"
        assert "data/probe.db" in error.message
        assert words in error.message
    await database.close()
