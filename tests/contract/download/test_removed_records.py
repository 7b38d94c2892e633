"""The record of a download that has ended can be removed; its model, its source and what guards its id stay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import structlog

from llamesh.v1 import download_pb2 as pb
from services.download.tables import TransferRow, TransferState
from services.download.transfers import Transfers
from tests.contract.conftest import AsCaller
from tests.contract.download.conftest import TINY, Service, import_file
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused


async def removed(service: Service, model_uuid: str) -> pb.Download:
    request = pb.DeleteDownloadRequest(model_uuid=model_uuid)
    return await service.downloads.DeleteDownload(request, metadata=service.caller)


async def listed(service: Service) -> list[str]:
    answer = await service.downloads.ListDownloads(pb.ListDownloadsRequest(), metadata=service.caller)
    return [download.model_uuid for download in answer.downloads]


@asynccontextmanager
async def told(service: Service) -> AsyncIterator[Callable[[], AsyncIterator[pb.WatchCatalogueResponse]]]:
    """Changes after the list of a watch."""
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    while not (await stream.read()).synced:
        pass

    async def changes() -> AsyncIterator[pb.WatchCatalogueResponse]:
        async with asyncio.timeout(PATIENCE):
            while True:
                yield await stream.read()

    try:
        yield changes
    finally:
        stream.cancel()


async def test_a_download_that_has_not_ended_is_not_removed(service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 64
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    with refused("DOWNLOAD_NOT_ENDED") as refusal:
        await removed(service, "m1")
    assert refusal.metadata == {"modelUuid": "m1", "state": "RUNNING"}
    assert "Cancel it first" in refusal.remedy
    web.go_on.set()
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_whoever_manages_the_mesh_may_end_and_remove_a_download_and_the_log_says_who_did(
    service: Service, web: ModelServer, as_caller: AsCaller
) -> None:
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 1
    await service.start("m1", web.url("a.gguf"))
    service.caller = as_caller("bob", "manage")
    with structlog.testing.capture_logs() as lines:
        await service.cancel("m1")
        await removed(service, "m1")
    calls = [line for line in lines if line["event"] == "call"]
    assert [(line["method"].rpartition("/")[2], line["subject"], line["model_uuid"]) for line in calls] == [
        ("CancelDownload", "bob", "m1"),
        ("DeleteDownload", "bob", "m1"),
    ]


async def test_a_removed_record_is_gone_for_good_if_it_has_no_model(service: Service, web: ModelServer) -> None:
    await service.fetched("m1", web.url("none.gguf?sig=secret"))
    gone = await removed(service, "m1")
    assert (gone.model_uuid, gone.state) == ("m1", pb.DOWNLOAD_STATE_FAILED)
    assert await listed(service) == []
    for call in (removed(service, "m1"), service.get("m1"), service.cancel("m1")):
        with refused("DOWNLOAD_NOT_FOUND"):
            await call
    # Not even its source is kept.
    with refused("QUANT_NOT_CONFIGURED"):
        await service.start("m1")


async def test_a_model_outlives_the_record_of_its_download(service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    await service.fetched("m1", web.url("a.gguf"))
    assert (await removed(service, "m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert await listed(service) == []
    assert (await service.path("m1")).read_bytes() == TINY
    # Its id still means these bytes.
    with refused("DOWNLOAD_CONFLICT"):
        await service.start("m1", web.url("other.gguf"))
    assert await listed(service) == []
    # Whoever asks for the same model finds it, and its download.
    assert (await service.start("m1", web.url("a.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await listed(service), web.asked) == (["m1"], ["a.gguf"])
    await removed(service, "m1")
    await service.delete("m1")
    with refused("DOWNLOAD_NOT_FOUND"):
        await service.get("m1")


async def test_a_damaged_model_is_repaired_from_its_source_though_the_record_was_removed(
    service: Service, web: ModelServer
) -> None:
    web.files["a.gguf"] = TINY
    await service.fetched("m1", web.url("a.gguf?sig=secret"))
    await removed(service, "m1")
    service.stored[0].unlink()
    with refused("MODEL_CORRUPT"):
        await service.path("m1")
    assert (await service.get("m1")).error.reason == "MODEL_CORRUPT"
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.path("m1")).read_bytes() == TINY


async def test_watchers_are_told_that_a_record_was_removed(service: Service) -> None:
    await service.fetched("m1", import_file(service, "a.gguf", TINY))
    async with told(service) as changes:
        await removed(service, "m1")
        change = await anext(changes())
    assert (change.WhichOneof("change"), change.removed_download_uuid) == ("removed_download_uuid", "m1")


async def test_a_record_that_is_removed_while_its_transfer_stops_does_not_come_back(
    service: Service, web: ModelServer
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    async with told(service) as changes:
        await service.start("m1", web.url("a.gguf"))
        await web.holding.wait()
        await service.cancel("m1")
        await removed(service, "m1")
        await service.no_files()
        # A later change, so that everything about the removed one was told before.
        await service.fetched("m2", import_file(service, "b.gguf", TINY))
        last = ""
        async for change in changes():
            if "m1" in (change.download.model_uuid, change.removed_download_uuid):
                last = change.WhichOneof("change") or ""
            if change.model.model_uuid == "m2":
                break
    assert last == "removed_download_uuid"


async def test_a_record_that_is_removed_while_the_end_of_its_transfer_is_read_does_not_come_back(
    service: Service, web: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, reading, removal = Transfers.find, asyncio.Event(), asyncio.Event()

    async def slow(transfers: Transfers, model_uuid: str) -> TransferRow | None:
        row = await find(transfers, model_uuid)
        if row is not None and row.state == TransferState.CANCELLED and not reading.is_set():
            reading.set()
            await removal.wait()
        return row

    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    async with told(service) as changes:
        await service.start("m1", web.url("a.gguf"))
        await web.holding.wait()
        monkeypatch.setattr(Transfers, "find", slow)
        await service.cancel("m1")
        async with asyncio.timeout(PATIENCE):
            await reading.wait()
        await removed(service, "m1")
        removal.set()
        await service.fetched("m2", import_file(service, "b.gguf", TINY))
        said = []
        async for change in changes():
            if "m1" in (change.download.model_uuid, change.removed_download_uuid):
                said.append(change.WhichOneof("change"))
            if change.model.model_uuid == "m2":
                break
    assert said[-1] == "removed_download_uuid"
    assert "download" not in said[said.index("removed_download_uuid") :]


async def test_a_model_asked_for_after_the_removal_is_another_transfer(service: Service, web: ModelServer) -> None:
    """A row of the same id began with the same attempt as the removed one, whose run then counted for it."""
    web.files["old.gguf"] = model_bytes("old", 3 << 20)
    web.files["new.gguf"] = TINY
    web.hold_after["old.gguf"] = 2 << 20
    await service.start("m1", web.url("old.gguf"))
    await web.holding.wait()
    await service.cancel("m1")
    await removed(service, "m1")
    await service.start("m1", web.url("new.gguf"))
    web.go_on.set()
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.path("m1")).read_bytes() == TINY
