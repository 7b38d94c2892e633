"""A run that is cancelled while it publishes or records leaves no object without a model, and no success untold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from llamesh.v1 import download_pb2 as pb
from services.download import worker
from services.download.publications import Publications
from tests.contract.download.conftest import TINY, Service, import_file
from tests.contract.patience import PATIENCE


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when the worker has cancelled a run. No sweep removes what the run leaves behind."""
    cancel, event = worker._cancel, asyncio.Event()

    def cancelling(task: asyncio.Task[None]) -> None:
        cancel(task)
        event.set()

    monkeypatch.setattr(worker, "_cancel", cancelling)
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 3600.0)
    return event


@pytest.mark.parametrize("stop", ["cancel", "pause"])
async def test_what_was_published_when_the_cancellation_came_is_removed(
    stopped: asyncio.Event, sqlite_service: Service, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    """The run was cancelled before it knew of the object, which then stayed for the time of its hold."""
    publish = Publications.publish
    end: Callable[[str], Awaitable[pb.Download]] = getattr(sqlite_service, stop)

    async def publishing(publications: Publications, *arguments: Any) -> object:
        done = await publish(publications, *arguments)
        await end("m1")
        async with asyncio.timeout(PATIENCE):
            await stopped.wait()
        return done

    monkeypatch.setattr(Publications, "publish", publishing)
    await sqlite_service.start("m1", import_file(sqlite_service, "a.gguf", TINY))
    async with asyncio.timeout(PATIENCE):
        await stopped.wait()
    await sqlite_service.no_files()


async def test_a_model_is_told_though_its_run_is_cancelled_after_the_success(
    stopped: asyncio.Event, sqlite_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker cancels the run of a row that has ended, which it may see before the run has told of its model."""
    record, service = Publications.record, sqlite_service
    later = import_file(service, "b.gguf", TINY)

    async def recording(publications: Publications, *arguments: Any) -> object:
        done = await record(publications, *arguments)
        if not stopped.is_set():
            # A call makes the worker look at the rows.
            await service.start("m2", later)
            async with asyncio.timeout(PATIENCE):
                await stopped.wait()
        return done

    monkeypatch.setattr(Publications, "record", recording)
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    while not (await stream.read()).synced:
        pass
    await service.start("m1", import_file(service, "a.gguf", TINY))
    async with asyncio.timeout(PATIENCE):
        while (await stream.read()).model.model_uuid != "m1":
            pass
    stream.cancel()
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
