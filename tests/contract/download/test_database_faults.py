"""A database that fails during a transfer costs nothing: the transfer goes on once it works again."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import TINY, OpenWith
from tests.contract.download.faults import FAULTS, Faults, faults, on_s3, s3
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE, until

__all__ = ["faults", "on_s3", "s3"]


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_database_that_fails_during_a_transfer_costs_nothing(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, fault: str
) -> None:
    """Every task of the service meets the fault: rows, progress, claims and the sweep; afterwards all go on."""
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.fault = FAULTS[fault]
    await until(lambda: faults.failed > 20)
    web.go_on.set()
    failed = faults.failed
    await until(lambda: faults.failed > failed + 20)
    faults.fault = None
    found = await service.state("m1")
    assert (found.state, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, 0)
    assert web.asked == ["a.gguf"]
    await until(lambda: len(service.stored) == 1)
    # Nothing of the service has ended: the next transfer is taken up, told and written as before.
    web.files["b.gguf"] = TINY
    assert (await service.fetched("m2", web.url("b.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED


@pytest.mark.parametrize("steps", range(8))
async def test_a_database_that_fails_at_any_step_of_the_end_loses_nothing(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, steps: int
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.after = steps
    faults.fault = FAULTS["database away"]
    web.go_on.set()
    await until(lambda: faults.failed > 10)
    faults.fault = None
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert web.asked == ["a.gguf"]
    assert (await service.path("m1")).read_bytes() == web.files["a.gguf"]
    await until(lambda: len(service.stored) == 1)


@pytest.mark.parametrize("commits", range(1, 8))
async def test_commits_whose_answer_is_lost_are_not_taken_for_failures(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, commits: int
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    assert (await stream.read()).synced
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.lost_answers = commits
    web.go_on.set()
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert web.asked == ["a.gguf"]
    assert (await service.path("m1")).read_bytes() == web.files["a.gguf"]
    # Who watches is told of it, too.
    async with asyncio.timeout(PATIENCE):
        while (await stream.read()).download.state != pb.DOWNLOAD_STATE_SUCCEEDED:
            pass
    stream.cancel()
    await until(lambda: len(service.stored) == 1)


async def test_a_failure_that_cannot_be_written_is_written_later(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults
) -> None:
    web.files["a.gguf"] = TINY[:-1] + b""
    web.hold_after["a.gguf"] = 64
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.fault = FAULTS["full disk"]
    web.go_on.set()
    await until(lambda: faults.failed > 10)
    faults.fault = None
    found = await service.state("m1")
    assert (found.error.reason, web.asked) == ("MODEL_INVALID", ["a.gguf"])


async def test_the_rows_may_be_looked_at_often_while_a_cancelled_transfer_cleans_up(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults
) -> None:
    """Each look used to cancel the transfer again, and with it the removal of its file."""
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    await until(lambda: any(path.stat().st_size >= 1 << 20 for path in service.stored))
    go_on = threading.Event()
    # The one thread is busy: what removes the file waits for it.
    threads = ThreadPoolExecutor(1)
    threads.submit(go_on.wait)
    asyncio.get_running_loop().set_default_executor(threads)
    try:
        await service.cancel("m1")
        looked = faults.steps
        await until(lambda: faults.steps > looked + 20)
    finally:
        go_on.set()
    await service.no_files()
