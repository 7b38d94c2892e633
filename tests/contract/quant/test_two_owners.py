"""Two processes of the Quant service on one database: the one that has lost its lease without noticing writes nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.database_failures import DatabaseBusyError
from llamesh.kit.objects import DirectoryStore
from llamesh.kit.serving import Member
from llamesh.v1 import quant_pb2
from services.quant.service import run
from tests.contract.conftest import StartMain
from tests.contract.patience import PATIENCE
from tests.contract.quant.conftest import Quant

TAKE = """UPDATE lease SET owner_id = 'thief', owner_words = 'process 7 on host thief', generation = generation + 1,
 expires_at = now() + interval '1 hour'"""


@pytest.fixture
def database_url(postgres: Callable[[], str]) -> str:
    """SQLite belongs to one home."""
    return postgres()


@pytest.fixture
async def other(prepared: Quant, tmp_path: Path) -> AsyncIterator[Database]:
    """The database, as another home sees it."""
    url = prepared.settings.database_url
    assert url is not None
    opened = open_database(Settings(home=tmp_path / "other", database_url=SecretStr(url.get_secret_value())), "quant")
    yield opened
    await opened.close()


async def rows(database: Database) -> list[tuple[object, ...]]:
    """What a run may change."""
    query = text("SELECT kind, type, state, tries, done, result::text FROM quant_step ORDER BY position")
    async with database.read() as session:
        return [tuple(row) for row in await session.execute(query)]


async def can_take(other: Database) -> None:
    """Wait until no transaction holds the lock of the lease."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                async with other.begin(guarded=False) as session:
                    await session.execute(text("SELECT 1 FROM lease FOR UPDATE NOWAIT"))
                    return
            except DatabaseBusyError:
                await asyncio.sleep(0.05)


async def test_a_process_that_has_lost_its_lease_writes_no_row(
    prepared: Quant, other: Database, start_main: StartMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It does not notice: a frozen process has not renewed yet either when it wakes up.
    monkeypatch.setattr("llamesh.kit.leases.RENEW_SECONDS", 10 * PATIENCE)
    member: Member = await start_main(prepared.settings, "quant", run)
    prepared.fault.write_text("hang")
    job = await prepared.create("Q8_0")
    await prepared.until(job.job_id, lambda job: job.steps[1].done)
    async with other.begin() as session:
        await session.execute(text(TAKE))
    before = await rows(other)
    prepared.fault.unlink()
    variant = prepared.settings.home / "quant" / job.job_id / "Q8_0.gguf"
    async with asyncio.timeout(PATIENCE):
        while not variant.exists():
            await asyncio.sleep(0.05)
    # The end of the step is written at once; it is refused, and tried again with a backoff.
    await asyncio.sleep(2)
    assert await rows(other) == before
    assert not member.stopping.is_set()
    request = quant_pb2.CancelQuantJobRequest(job_id=job.job_id)
    with pytest.raises(Exception, match="another mesh has taken over"):
        await prepared.stub.CancelQuantJob(request, metadata=prepared.caller)


async def test_a_process_that_has_lost_its_lease_removes_no_object(
    prepared: Quant, other: Database, start_main: StartMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamesh.kit.leases.RENEW_SECONDS", 10 * PATIENCE)
    await start_main(prepared.settings, "quant", run)
    job = await prepared.create("Q8_0")
    await prepared.ended(job.job_id)
    before = prepared.objects()
    (variant,) = await prepared.models()
    async with other.begin() as session:
        await session.execute(text(TAKE))
    request = quant_pb2.DeleteQuantModelRequest(model_uuid=variant)
    with pytest.raises(Exception, match="another mesh has taken over"):
        await prepared.stub.DeleteQuantModel(request, metadata=prepared.caller)
    assert before == prepared.objects()
    assert len(before) == 2
    assert [*await prepared.models()] == [variant]


@pytest.mark.parametrize("request_name", ["remove_staged", "delete"])
async def test_nobody_takes_the_lease_while_an_object_is_removed(
    prepared: Quant, other: Database, start_main: StartMain, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    """A process that stops in a removal, and goes on, has not removed the object of a successor."""
    await start_main(prepared.settings, "quant", run)
    job = await prepared.create("Q8_0")
    await prepared.ended(job.job_id)
    (variant,) = await prepared.models()
    original, taken = getattr(DirectoryStore, request_name), []

    async def frozen(store: DirectoryStore, key: str) -> None:
        try:
            async with other.begin(guarded=False) as session:
                await session.execute(text("SET LOCAL lock_timeout = '100ms'"))
                await session.execute(text(TAKE))
                taken.append(True)
        except DatabaseBusyError:
            taken.append(False)
        await original(store, key)

    monkeypatch.setattr(DirectoryStore, request_name, frozen)
    await prepared.call("DeleteQuantModel", quant_pb2.DeleteQuantModelRequest(model_uuid=variant))
    assert taken
    assert not any(taken)
    assert not prepared.objects()
    assert not await prepared.models()


async def test_a_bucket_that_hangs_is_no_outage_of_the_database(
    prepared: Quant, other: Database, start_main: StartMain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ownership is given back in time; the removal ends when the bucket answers."""
    await start_main(prepared.settings, "quant", run)
    job = await prepared.create("Q8_0")
    await prepared.ended(job.job_id)
    (variant,) = await prepared.models()
    owned, remove_staged = Database.owned, DirectoryStore.remove_staged
    asking, answers = asyncio.Event(), threading.Event()

    @asynccontextmanager
    async def shortly_owned(database: Database) -> AsyncIterator[float]:
        async with owned(database):
            yield 0.1

    async def hangs(store: DirectoryStore, key: str) -> None:
        asking.set()
        await asyncio.to_thread(answers.wait, 10 * PATIENCE)
        await remove_staged(store, key)

    monkeypatch.setattr(Database, "owned", shortly_owned)
    monkeypatch.setattr(DirectoryStore, "remove_staged", hangs)
    request = quant_pb2.DeleteQuantModelRequest(model_uuid=variant)
    removal = asyncio.create_task(prepared.call("DeleteQuantModel", request))
    try:
        await asking.wait()
        await can_take(other)
        assert [*await prepared.models()] == [variant]
        assert not removal.done()
    finally:
        answers.set()
    await removal
    assert not prepared.objects()
    assert not await prepared.models()


async def test_jobs_can_be_read_without_the_lock_of_the_lease(
    prepared: Quant, other: Database, start_main: StartMain
) -> None:
    """Reads go on while another transaction has the row, and take no lock that a takeover would wait for."""
    await start_main(prepared.settings, "quant", run)
    job = await prepared.create("Q8_0")
    await prepared.ended(job.job_id)
    async with other.begin(guarded=False) as session:
        await session.execute(text("SELECT 1 FROM lease FOR UPDATE"))
        assert (await prepared.job(job.job_id)).job_id == job.job_id
        listed = await prepared.stub.ListQuantJobs(quant_pb2.ListQuantJobsRequest(), metadata=prepared.caller)
        assert [each.job_id for each in listed.jobs] == [job.job_id]
        watch = quant_pb2.WatchQuantJobsRequest(job_id=job.job_id)
        assert [each.job.job_id async for each in prepared.stub.WatchQuantJobs(watch, metadata=prepared.caller)] == [
            job.job_id
        ]
