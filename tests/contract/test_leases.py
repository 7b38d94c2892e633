"""One owner of a role on one PostgreSQL: a living one is named, a dead one followed, and what lost it writes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from llamesh.kit import leases
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.errors import MeshError
from llamesh.kit.leases import Lease, LeaseHeldError
from llamesh.kit.ownership import Owner
from tests.contract.patience import PATIENCE

ADA = Owner("1@alpha", "process 1 on host alpha")
BEN = Owner("2@beta", "process 2 on host beta")


@pytest.fixture(autouse=True)
def long_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lease expires by itself while a test waits."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 10 * PATIENCE)


@pytest.fixture
async def database(postgres: Callable[[], str], tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(Settings(home=tmp_path, database_url=SecretStr(postgres())), "controller")
    await opened.migrate("controller")
    yield opened
    await opened.close()


def lease(
    database: Database, owner: Owner, lost: list[str] | None = None, clock: Callable[[], float] = time.monotonic
) -> Lease:
    async def soon(_: float) -> None:
        await asyncio.sleep(0.01)

    return Lease(database, "controller", owner, (lost if lost is not None else []).append, soon, clock)


async def forget_to_renew(database: Database) -> None:
    async with database.begin() as session:
        await session.execute(text("UPDATE lease SET expires_at = now() - interval '1 second'"))


async def remove(database: Database) -> None:
    async with database.begin(guarded=False) as session:
        await session.execute(text("DELETE FROM lease"))


async def expired(database: Database) -> bool:
    async with database.read() as session:
        return bool(await session.scalar(text("SELECT expires_at < now() FROM lease")))


async def test_a_living_owner_is_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    first = lease(database, ADA)
    await first.acquire()
    first.start()
    with pytest.raises(LeaseHeldError, match="process 1 on host alpha"):
        await lease(database, BEN).acquire()
    await first.close()


async def test_the_same_owner_takes_it_again_at_once(database: Database) -> None:
    await lease(database, ADA).acquire()
    await asyncio.wait_for(lease(database, ADA).acquire(), PATIENCE)


async def test_a_dead_owner_is_followed_once_its_lease_has_expired(database: Database) -> None:
    await lease(database, ADA).acquire()
    second = asyncio.create_task(lease(database, BEN).acquire())
    await asyncio.sleep(0.2)
    assert not second.done()
    await forget_to_renew(database)
    await asyncio.wait_for(second, PATIENCE)


async def test_a_released_lease_is_free_at_once(database: Database) -> None:
    first = lease(database, ADA)
    await first.acquire()
    first.start()
    await first.close()
    await asyncio.wait_for(lease(database, BEN).acquire(), PATIENCE)


async def test_the_former_owner_is_told_writes_nothing_and_does_not_release_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a frozen or cut off owner: it comes back when another has begun."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    lost: list[str] = []
    frozen = lease(database, ADA, lost)
    await frozen.acquire()
    await forget_to_renew(database)
    follower = lease(database, BEN)
    await follower.acquire()
    with pytest.raises(MeshError, match="another mesh has taken over"):
        async with database.begin() as session:
            await frozen.guard(session)
    async with database.begin() as session:
        await follower.guard(session)
    frozen.start()
    async with asyncio.timeout(PATIENCE):
        while not lost:
            await asyncio.sleep(0.01)
    await frozen.close()
    assert lost == ["process 2 on host beta"]
    with pytest.raises(LeaseHeldError):
        follower.start()
        await lease(database, ADA).acquire()
    await follower.close()


async def test_the_former_owner_gets_nothing_back_when_its_follower_has_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the follower has changed is unknown to it."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    lost: list[str] = []
    frozen = lease(database, ADA, lost)
    await frozen.acquire()
    await forget_to_renew(database)
    await lease(database, BEN).acquire()
    await forget_to_renew(database)
    frozen.start()
    async with asyncio.timeout(PATIENCE):
        while not lost:
            await asyncio.sleep(0.01)
    await frozen.close()
    assert lost == ["process 2 on host beta"]
    # The next process of the same owner begins with what it reads.
    await lease(database, ADA).acquire()
    with pytest.raises(MeshError, match="another mesh has taken over"):
        async with database.begin() as session:
            await frozen.guard(session)


async def test_every_transaction_of_a_guarded_database_is_refused_to_the_former_owner(
    database: Database, tmp_path: Path
) -> None:
    first = lease(database, ADA)
    await first.acquire()
    database.guard_with(first.guard)
    await forget_to_renew(database)
    async with database.begin(guarded=False) as session:
        await session.execute(text("UPDATE lease SET owner_id = 'thief', generation = generation + 1"))
    with pytest.raises(MeshError, match="another mesh has taken over"):
        async with database.begin():
            pass


async def test_an_expired_lease_that_was_not_taken_is_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an outage of the database."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    lost: list[str] = []
    kept = lease(database, ADA, lost)
    await kept.acquire()
    await forget_to_renew(database)
    kept.start()
    async with asyncio.timeout(PATIENCE):
        while await expired(database):
            await asyncio.sleep(0.01)
    assert not await lease(database, BEN)._take()
    await kept.close()
    assert lost == []


async def test_one_of_many_concurrent_owners_gets_the_lease(database: Database) -> None:
    owners = [Owner(str(number), f"process {number}") for number in range(10)]
    taken = await asyncio.gather(*(lease(database, owner)._take() for owner in owners))
    assert sum(taken) == 1


async def test_a_row_that_was_removed_is_inserted_again_by_its_owner(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    lost: list[str] = []
    kept = lease(database, ADA, lost)
    await kept.acquire()
    database.guard_with(kept.guard)
    await remove(database)
    with pytest.raises(MeshError, match="the row of the role controller was removed"):
        async with database.begin():
            pass
    kept.start()
    async with asyncio.timeout(PATIENCE):
        while await kept._present() is None:
            await asyncio.sleep(0.01)
    async with database.begin():
        pass
    assert not await lease(database, BEN)._take()
    await kept.close()
    assert lost == []


async def test_a_row_that_was_removed_is_lost_to_an_owner_that_did_not_renew_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another may have had it meanwhile."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    lost: list[str] = []
    times = iter([0.0])
    frozen = lease(database, ADA, lost, lambda: next(times, leases.LEASE_SECONDS))
    await frozen.acquire()
    await remove(database)
    frozen.start()
    async with asyncio.timeout(PATIENCE):
        while not lost:
            await asyncio.sleep(0.01)
    await frozen.close()
    assert lost == ["an unknown process (the row of the lease was removed)"]
    assert await frozen._present() is None


async def test_a_removed_row_that_another_has_inserted_is_its(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    lost: list[str] = []
    first = lease(database, ADA, lost)
    await first.acquire()
    await remove(database)
    await lease(database, BEN).acquire()
    first.start()
    async with asyncio.timeout(PATIENCE):
        while not lost:
            await asyncio.sleep(0.01)
    await first.close()
    assert lost == ["process 2 on host beta"]
