"""An owner that is frozen in a transaction loses its lease as one that has ended: PostgreSQL ends the transaction, and with it the lock."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.leases import Lease, LeaseHeldError
from llamesh.kit.ownership import Owner
from llamesh.kit.postgres import IDLE_SHARE
from tests.contract.patience import PATIENCE

BEN = Owner("2@beta", "process 2 on host beta")
FROZEN = """
import asyncio, sys
from pathlib import Path
from pydantic import SecretStr
from llamesh.kit import leases
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.ownership import Owner

async def main():
    leases.LEASE_SECONDS = 0.2
    settings = Settings(home=Path(sys.argv[2]), database_url=SecretStr(sys.argv[1]), database_seconds=1)
    database = open_database(settings, "quant")
    lease = leases.Lease(database, "quant", Owner("1@alpha", "process 1 on host alpha"), print)
    await lease.acquire()
    database.guard_with(lease.guard)
    async with database.begin():
        print("begun", flush=True)
        sys.stdin.read()

asyncio.run(main())
"""


@pytest.fixture
def address(postgres: Callable[[], str]) -> str:
    return postgres()


@pytest.fixture
async def database(address: str, tmp_path: Path) -> AsyncIterator[Database]:
    settings = Settings(home=tmp_path, database_url=SecretStr(address), database_seconds=1)
    opened = open_database(settings, "quant")
    await opened.migrate("services.quant")
    yield opened
    await opened.close()


@asynccontextmanager
async def frozen_owner(address: str, home: Path) -> AsyncIterator[None]:
    """A process that has taken the lease, and is stopped in a transaction that has checked it."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FROZEN, address, str(home), stdin=pipe, stdout=pipe
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"begun\n"
        psutil.Process(process.pid).suspend()
        yield
    finally:
        process.kill()
        await process.communicate()


async def test_the_lease_of_an_owner_that_is_frozen_in_a_transaction_is_taken_over(
    address: str, database: Database, tmp_path: Path
) -> None:
    mine = Lease(database, "quant", BEN, print)
    async with frozen_owner(address, tmp_path):
        await asyncio.wait_for(mine.acquire(), PATIENCE)
        async with database.begin() as session:
            await mine.guard(session)


async def test_who_keeps_a_lease_locked_is_named(address: str, database: Database) -> None:
    """A connection that is not one of llamesh has no limit."""
    owner = Lease(database, "quant", Owner("1@alpha", "process 1 on host alpha"), print)
    await owner.acquire()
    async with database.begin() as session:
        await session.execute(text("UPDATE lease SET expires_at = now() - interval '1 second'"))
    waits: list[str] = []
    other = await asyncpg.connect(address)
    try:
        await other.execute("BEGIN")
        await other.execute("SELECT 1 FROM quant.lease FOR SHARE")
        with pytest.raises(LeaseHeldError, match="process 1 on host alpha"):
            await asyncio.wait_for(Lease(database, "quant", BEN, print).acquire(on_wait=waits.append), PATIENCE)
    finally:
        await other.close()
    assert waits == ["process 1 on host alpha"]


async def test_every_connection_has_the_limit(database: Database) -> None:
    async with database.read() as session:
        assert await session.scalar(text("SHOW idle_in_transaction_session_timeout")) == f"{IDLE_SHARE:g}s"
