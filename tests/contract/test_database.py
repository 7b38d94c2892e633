"""The same tables on SQLite and on PostgreSQL: moments keep their zone, a transaction that fails leaves nothing."""

from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import text

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.errors import MeshError, name_of


@pytest.fixture
def with_tables() -> bool:
    """These tests are about migrations."""
    return False


async def test_a_transaction_that_fails_leaves_nothing(settings: Settings) -> None:
    database = open_database(settings, "probe")
    async with database.engine.begin() as connection:
        if database.schema:
            await connection.execute(text('CREATE SCHEMA "probe"'))
        await connection.execute(text("CREATE TABLE probe_row (id INTEGER PRIMARY KEY)"))
    with pytest.raises(ZeroDivisionError):
        async with database.begin() as session:
            await session.execute(text("INSERT INTO probe_row VALUES (1)"))
            raise ZeroDivisionError
    async with database.begin() as session:
        assert (await session.execute(text("SELECT count(*) FROM probe_row"))).scalar() == 0
    await database.close()


async def test_a_wrong_database_url_names_the_remedy(settings: Settings) -> None:
    broken = settings.model_copy(update={"database_url": type(settings.jwt_secret)("mysql://x/y")})
    with pytest.raises(ValueError, match="postgresql://"):
        open_database(broken, "probe")


async def test_rows_that_a_transaction_read_do_not_change_during_it(settings: Settings) -> None:
    """Twenty transactions read a counter and write it back plus one: none is lost."""
    database = open_database(settings, "probe")
    async with database.engine.begin() as connection:
        if database.schema:
            await connection.execute(text('CREATE SCHEMA "probe"'))
        await connection.execute(text("CREATE TABLE probe_counter (value INTEGER)"))
        await connection.execute(text("INSERT INTO probe_counter VALUES (0)"))

    async def add_one() -> None:
        async with database.begin() as session:
            lock = " FOR UPDATE" if database.schema else ""
            value = (await session.execute(text(f"SELECT value FROM probe_counter{lock}"))).scalar_one()
            await session.execute(text("UPDATE probe_counter SET value = :value"), {"value": value + 1})

    await asyncio.gather(*(add_one() for _ in range(20)))
    async with database.begin() as session:
        assert (await session.execute(text("SELECT value FROM probe_counter"))).scalar_one() == 20
    await database.close()


async def open_transactions(database: Database) -> int | None:
    """Count the connections of PostgreSQL that are in a transaction and wait for their client."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
    )
    async with database.read() as session:
        return await session.scalar(text(query))


async def test_a_cancelled_transaction_leaves_its_rows_free_and_returns_its_connection(settings: Settings) -> None:
    """At any moment: while it connects, in a statement, in the commit, in the rollback. PostgreSQL keeps no transaction open."""
    chance = random.Random(7)
    mine, others = open_database(settings, "probe"), open_database(settings, "probe")
    async with mine.engine.begin() as connection:
        if mine.schema:
            await connection.execute(text('CREATE SCHEMA "probe"'))
        await connection.execute(text("CREATE TABLE probe_counter (value INTEGER)"))
        await connection.execute(text("INSERT INTO probe_counter VALUES (0)"))

    async def add_one(database: Database, number: int) -> None:
        async with database.begin() as session:
            await session.execute(text("UPDATE probe_counter SET value = value + 1"))
            await session.execute(text("SELECT value FROM probe_counter"))
            if number % 3 == 0:
                raise ZeroDivisionError

    for number in range(60):
        task = asyncio.create_task(add_one(mine, number))
        await asyncio.sleep(chance.random() * 0.01)
        task.cancel()
        await asyncio.wait({task})
        assert mine.engine.pool.status().endswith("Checked out connections: 0")
        await add_one(others, 1)
    if mine.schema:
        async with asyncio.timeout(10):
            # The server notices a closed connection a moment later.
            while await open_transactions(others):
                await asyncio.sleep(0.01)
    await others.close()
    await mine.close()


async def test_tables_at_the_newest_version_are_left_alone_and_older_ones_are_brought_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start reads one row and needs no migration tool; a version that is behind is noticed."""
    from alembic import command

    upgrades: list[str] = []
    upgrade = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, to: (upgrades.append(to), upgrade(config, to)))
    for _ in range(2):
        database = open_database(settings, "gateway")
        await database.migrate("services.gateway")
        assert upgrades == ["head"]
        await database.close()
    database = open_database(settings, "gateway")
    async with database.begin() as session:
        await session.execute(text("DROP TABLE users"))
        for table in ("signing_keys", "ended_standings", "standings_changes"):
            await session.execute(text(f"DROP TABLE {table}"))
        await session.execute(text("DELETE FROM alembic_version"))
    await database.migrate("services.gateway")
    assert upgrades == ["head", "head"]
    async with database.begin() as session:
        assert (await session.execute(text("SELECT count(*) FROM users"))).scalar_one() == 0
    await database.close()


async def test_a_server_that_does_not_answer_is_unavailable_and_named_for_the_log(settings: Settings) -> None:
    nobody = type(settings.jwt_secret)("postgresql://ada:secret@127.0.0.1:1/x")
    database = open_database(settings.model_copy(update={"database_url": nobody}), "probe")
    with pytest.raises(MeshError) as caught:
        await database.migrate("services.gateway")
    assert name_of(caught.value.reason) == "COMPONENT_UNAVAILABLE"
    assert database.place == "127.0.0.1:1"
    await database.close()


async def test_a_reader_sees_committed_rows_and_waits_for_no_writer(settings: Settings) -> None:
    database = open_database(settings, "probe")
    async with database.engine.begin() as connection:
        if database.schema:
            await connection.execute(text('CREATE SCHEMA "probe"'))
        await connection.execute(text("CREATE TABLE probe_row (id INTEGER PRIMARY KEY)"))
        await connection.execute(text("INSERT INTO probe_row VALUES (1)"))

    async def count() -> int | None:
        async with database.read() as session:
            return (await session.execute(text("SELECT count(*) FROM probe_row"))).scalar()

    async with database.begin() as session:
        await session.execute(text("INSERT INTO probe_row VALUES (2)"))
        assert await count() == 1
    assert await count() == 2
    await database.close()


async def test_a_full_disk_is_reported_and_existing_rows_stay_readable(one_settings: Settings) -> None:
    database = open_database(one_settings, "probe")
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE probe_row (content TEXT)"))
        await connection.execute(text("INSERT INTO probe_row VALUES ('kept')"))
        # SQLite's own limit stands for the disk's: the error is the same.
        await connection.execute(text("PRAGMA max_page_count = 4"))
    with pytest.raises(MeshError) as caught:
        async with database.begin() as session:
            await session.execute(text("INSERT INTO probe_row VALUES (:content)"), {"content": "x" * 100_000})
    assert name_of(caught.value.reason) == "STORAGE_FULL"
    async with database.read() as session:
        assert (await session.execute(text("SELECT content FROM probe_row"))).scalars().all() == ["kept"]
    await database.close()
