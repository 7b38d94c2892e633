"""A transaction that is cancelled at any moment leaves the SQLite file free when it has ended."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.pools import SqliteConnection

ROUNDS = 200


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Without the garbage collector, which releases a forgotten connection at a moment that no test controls."""
    gc.disable()
    yield
    gc.enable()


async def _write(database: Database, number: int) -> None:
    """Write and read in one transaction. Each statement is a moment at which a cancellation can arrive."""
    async with database.begin() as session:
        await session.execute(text("INSERT INTO probe VALUES (:number)"), {"number": number})
        await session.execute(text("SELECT value FROM probe"))
        await session.execute(text("UPDATE probe SET value = value + 0"))
        if number % 3 == 0:
            raise ZeroDivisionError


async def _begun(database: Database) -> float:
    """Create the table and return the seconds that a transaction takes, the connection included."""
    async with database.begin() as session:
        await session.execute(text("CREATE TABLE probe (value INTEGER)"))
    await database.close()
    began = time.monotonic()
    await _write(database, 1)
    return time.monotonic() - began


def _take_lock(file: Path) -> None:
    """Begin a transaction on another connection that does not wait. Raises OperationalError if the file is locked."""
    other = sqlite3.connect(file, timeout=0, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    finally:
        other.close()


async def test_the_lock_of_a_sqlite_file_is_free_when_a_cancelled_transaction_has_ended(tmp_path: Path) -> None:
    chance = random.Random(7)
    database = open_database(Settings(home=tmp_path), "probe")
    longest = await _begun(database)
    ends: Counter[str] = Counter()
    for number in range(ROUNDS):
        task = asyncio.create_task(_write(database, number))
        await asyncio.sleep(chance.random() * longest)
        task.cancel()
        await asyncio.wait({task})
        ends["cancelled" if task.cancelled() else "ended"] += 1
        if not task.cancelled():
            assert isinstance(task.exception(), ZeroDivisionError | None)
        _take_lock(tmp_path / "data" / "probe.db")
    assert ends["cancelled"] > ROUNDS / 10, ends
    await _write(database, 1)
    await database.close()


async def test_a_transaction_that_is_cancelled_twice_lets_the_next_one_write(tmp_path: Path) -> None:
    """As by its caller and its deadline. The second cancellation can interrupt the cleanup after the first one."""
    chance = random.Random(8)
    database = open_database(Settings(home=tmp_path), "probe")
    longest = await _begun(database)
    for number in range(ROUNDS // 2):
        task = asyncio.create_task(_write(database, number))
        await asyncio.sleep(chance.random() * longest)
        task.cancel()
        await asyncio.sleep(chance.random() * longest / 10)
        task.cancel()
        with suppress(asyncio.CancelledError, ZeroDivisionError):
            await task
        await _write(database, 1)
    await database.close()


def test_a_closed_connection_releases_its_locks_although_a_cursor_is_in_the_middle_of_a_result(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "probe.db", isolation_level=None, factory=SqliteConnection)
    held = connection.cursor()
    for statement in ("CREATE TABLE probe (value)", "BEGIN IMMEDIATE", "INSERT INTO probe VALUES (1), (2)"):
        connection.cursor().execute(statement)
    held.execute("SELECT value FROM probe")
    connection.close()
    connection.close()
    _take_lock(tmp_path / "probe.db")
    del held
