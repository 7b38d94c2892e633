"""A paused download holds no slot and keeps its parts, over a restart too, until it is resumed, cancelled or too old."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from llamesh.kit.database import Database
from llamesh.v1 import download_pb2 as pb
from services.download.partial_objects import PartialObjects
from services.download.slots import MAX_OF_USER
from services.download.sources import SourceObject
from services.download.tables import TransferRow
from services.download.transfers import Transfers
from tests.contract.download.conftest import TINY, OpenWith, Restart, Service, import_file
from tests.contract.download.in_parts import AGAIN, DATA, DIGEST, NEVER, PARALLEL, PART, PARTS, nothing_left
from tests.contract.download.journal import HEADER, counted, until
from tests.contract.model_source import ModelServer
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import RangedServer
from tests.contract.rich_status import refused

PAUSED, QUEUED, RUNNING = pb.DOWNLOAD_STATE_PAUSED, pb.DOWNLOAD_STATE_QUEUED, pb.DOWNLOAD_STATE_RUNNING


async def test_a_resumed_download_fetches_only_what_it_lacks(
    half: Service, source: RangedServer, journal: Database
) -> None:
    paused = await half.pause("m1")
    # Progress is written at an interval, which has not passed; the total is there from the beginning.
    assert (paused.state, paused.bytes_total) == (PAUSED, len(DATA))
    assert PARTS // 2 - PARALLEL <= paused.bytes_done / PART <= PARTS // 2 + PARALLEL
    assert (await half.get("m1")).bytes_done == paused.bytes_done
    assert paused.bytes_done // PART <= (await counted(journal))[1] <= paused.bytes_done // PART + PARALLEL
    source.go_on_until(NEVER)
    resumed = await half.resume("m1")
    assert (resumed.state, resumed.resume_count, resumed.bytes_total) == (QUEUED, 1, len(DATA))
    found = await half.state("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST)
    assert source.sent <= len(DATA) + HEADER + AGAIN


async def test_a_paused_download_stays_paused_over_a_restart_and_keeps_its_parts(
    half: Service, source: RangedServer, journal: Database, restart: Restart
) -> None:
    paused = await half.pause("m1")
    again, asked = await restart()
    # A download that ends shows that the service has looked at its rows and objects.
    await again.fetched("m2", import_file(again, "a.gguf", TINY))
    found = await again.get("m1")
    assert (found.state, found.bytes_done, source.ranges) == (PAUSED, paused.bytes_done, asked)
    assert (await counted(journal))[0] == 1
    await again.resume("m1")
    assert (await again.state("m1")).sha256 == DIGEST
    assert source.sent <= len(DATA) + HEADER + AGAIN


async def test_paused_downloads_give_their_slots_to_others(sqlite_service: Service, web: ModelServer) -> None:
    service = sqlite_service
    names = [f"m{number}" for number in range(MAX_OF_USER)]
    web.files |= {f"{name}.gguf": TINY for name in names}
    web.hold_after |= {f"{name}.gguf": 64 for name in names}
    for name in names:
        await service.start(name, web.url(f"{name}.gguf"))
        await service.state(name, RUNNING)
    await service.start("next", import_file(service, "next.gguf", TINY))
    assert (await service.get("next")).state == QUEUED
    await service.pause("m0")
    assert (await service.state("next")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    web.go_on.set()
    await service.resume("m0")
    for name in names:
        assert (await service.state(name)).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_download_that_waits_is_paused_and_gets_no_slot(sqlite_service: Service, web: ModelServer) -> None:
    service = sqlite_service
    web.busy["a.gguf"] = [(503, "600")]
    web.files["a.gguf"] = TINY
    await service.start("m1", web.url("a.gguf"))

    async def waits() -> bool:
        return bool((await service.get("m1")).error.reason)

    await until(waits)
    paused = await service.pause("m1")
    assert (paused.state, paused.error.reason, paused.bytes_done) == (PAUSED, "", 0)
    await service.fetched("m2", import_file(service, "b.gguf", TINY))
    assert ((await service.get("m1")).state, web.asked) == (PAUSED, ["a.gguf"])
    # The wait for the source ended with the pause.
    await service.resume("m1")
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_whoever_asks_for_a_paused_model_lets_it_go_on(half: Service, source: RangedServer) -> None:
    await half.pause("m1")
    with refused("MODEL_NOT_READY") as refusal:
        await half.model("m1")
    assert "the download of m1 is paused" in refusal.message
    with refused("DOWNLOAD_CONFLICT"):
        await half.start("m1", f"{source.url}?other")
    source.go_on_until(NEVER)
    assert (await half.start("m1", source.url)).state == QUEUED
    assert (await half.state("m1")).sha256 == DIGEST
    assert source.sent <= len(DATA) + HEADER + AGAIN


async def test_pause_and_resume_can_be_repeated_and_end_with_the_download(half: Service, source: RangedServer) -> None:
    first = await half.pause("m1")
    assert await half.pause("m1") == first
    with refused("DOWNLOAD_NOT_ENDED"):
        await half.downloads.DeleteDownload(pb.DeleteDownloadRequest(model_uuid="m1"), metadata=half.caller)
    source.go_on_until(NEVER)
    await half.resume("m1")
    assert (await half.resume("m1")).resume_count == 1
    await half.state("m1")
    for call in (half.pause, half.resume):
        with refused("DOWNLOAD_ENDED") as refusal:
            await call("m1")
        assert refusal.metadata == {"modelUuid": "m1", "state": "SUCCEEDED"}
        with refused("DOWNLOAD_NOT_FOUND"):
            await call("none")


async def test_a_paused_download_that_is_cancelled_leaves_nothing(half: Service, journal: Database) -> None:
    await half.pause("m1")
    assert (await half.cancel("m1")).state == pb.DOWNLOAD_STATE_CANCELLED
    await nothing_left(half, journal)


async def test_parts_that_are_too_old_are_removed_and_the_download_begins_anew_once_resumed(
    open_half: OpenWith, source: RangedServer, journal: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.worker.SWEEP_SECONDS", 0.05)
    service = await open_half(download_paused_hours=1e-9)
    await service.pause("m1")
    await nothing_left(service, journal)
    found = await service.get("m1")
    assert (found.state, found.bytes_done) == (PAUSED, 0)
    source.go_on_until(NEVER)
    sent = source.sent
    await service.resume("m1")
    assert (await service.state("m1")).sha256 == DIGEST
    assert source.sent - sent >= len(DATA) + HEADER


async def test_a_run_that_was_paused_before_it_opened_its_parts_leaves_them_to_the_next(
    half: Service, source: RangedServer, journal: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run of the first attempt found the object of the second and removed it as that of an ended attempt."""
    open_object, paused, ended = PartialObjects.open, list[pb.Download](), asyncio.Event()

    async def pausing(objects: PartialObjects, row: TransferRow, number: int, found: SourceObject, size: int) -> object:
        if paused:
            return await open_object(objects, row, number, found, size)
        pause = asyncio.ensure_future(half.pause("m1"))
        with suppress(asyncio.CancelledError):
            await asyncio.shield(pause)
        paused.append(await pause)
        try:
            _, opened = await open_object(objects, row, number, found, size)
            await opened.close()
        finally:
            ended.set()
        raise asyncio.CancelledError

    kept = (await half.pause("m1")).bytes_done
    monkeypatch.setattr(PartialObjects, "open", pausing)
    await half.resume("m1")
    async with asyncio.timeout(PATIENCE):
        await ended.wait()
    assert paused[0].bytes_done >= kept

    async def alone() -> bool:
        return (await counted(journal))[0] == 1

    await until(alone)
    source.go_on_until(NEVER)
    await half.resume("m1")
    assert (await half.state("m1")).sha256 == DIGEST
    assert source.sent <= len(DATA) + HEADER + 2 * AGAIN


async def test_a_pause_that_comes_while_the_model_is_recorded_wins_or_comes_too_late(
    sqlite_service: Service, web: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes first: a paused download has no model, and one that succeeded cannot be paused."""
    service, progress = sqlite_service, Transfers.progress

    async def pausing(transfers: Transfers, model_uuid: str, *arguments: int, **fields: int) -> object:
        written = await progress(transfers, model_uuid, *arguments, **fields)  # type: ignore[arg-type]
        if fields.get("verifying"):
            await service.pause(model_uuid)
        return written

    web.files["a.gguf"] = TINY
    monkeypatch.setattr(Transfers, "progress", pausing)
    await service.start("m1", web.url("a.gguf"))
    assert (await service.state("m1", PAUSED)).state == PAUSED
    await service.no_files()
    monkeypatch.setattr(Transfers, "progress", progress)
    with refused("MODEL_NOT_READY"):
        await service.model("m1")
    await service.resume("m1")
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
