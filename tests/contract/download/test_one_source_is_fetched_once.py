"""Two models of one new address are fetched once: the second waits for the first, and fetches itself if the first brings no bytes."""

from __future__ import annotations

import asyncio

import pytest

from llamesh.v1 import download_pb2 as pb
from services.download import source_holds
from tests.contract.conftest import AsCaller
from tests.contract.download.conftest import OpenWith, Restart, Service, sha256
from tests.contract.download.in_parts import AGAIN, DATA, DIGEST, NEVER
from tests.contract.download.journal import HEADER
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import RangedServer

ETAG = '"v1"'


@pytest.fixture
async def both(half: Service, source: RangedServer) -> Service:
    """Has half of m1; m2 is asked for at the same address, whose digest is unknown."""
    await half.start("m2", source.url)
    return half


async def succeeded(service: Service, *names: str) -> None:
    for name in names:
        found = await service.state(name)
        assert (found.state, found.sha256, found.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST, "")


async def test_the_second_model_of_an_address_gets_the_bytes_of_the_first(both: Service, source: RangedServer) -> None:
    source.go_on_until(NEVER)
    await succeeded(both, "m1", "m2")
    assert source.sent == len(DATA) + HEADER
    assert await both.path("m1") == await both.path("m2")
    await both.delete("m1")
    assert (await both.path("m2")).read_bytes() == DATA


async def test_the_second_says_for_which_download_it_waits(both: Service, source: RangedServer) -> None:
    async def told(service: Service) -> str:
        watch = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
        async for response in watch:
            if response.download.model_uuid == "m2" and response.download.error.message:
                break
        watch.cancel()
        return response.download.error.message

    words = "waits for the download of m1, which fetches the same source"
    assert await asyncio.wait_for(told(both), PATIENCE) == words
    # A new watch gets it with its list, and each call shows it.
    assert await asyncio.wait_for(told(both), PATIENCE) == words
    listed = await both.downloads.ListDownloads(pb.ListDownloadsRequest(), metadata=both.caller)
    found = await both.get("m2")
    shown = {item.model_uuid: item.error for item in (*listed.downloads, found)}
    assert (found.state, shown) == (
        pb.DOWNLOAD_STATE_QUEUED,
        {"m1": pb.DownloadError(), "m2": pb.DownloadError(message=words)},
    )
    source.go_on_until(NEVER)
    await succeeded(both, "m1", "m2")


async def test_the_second_fetches_the_bytes_if_the_first_is_cancelled(both: Service, source: RangedServer) -> None:
    await both.cancel("m1")
    source.go_on_until(NEVER)
    await succeeded(both, "m2")
    assert (await both.get("m1")).state == pb.DOWNLOAD_STATE_CANCELLED


async def test_the_first_goes_on_if_the_second_is_cancelled(both: Service, source: RangedServer) -> None:
    await both.cancel("m2")
    source.go_on_until(NEVER)
    await succeeded(both, "m1")
    assert source.sent == len(DATA) + HEADER


async def test_a_paused_download_holds_no_other_one_and_gets_its_bytes(both: Service, source: RangedServer) -> None:
    await both.pause("m1")
    source.go_on_until(NEVER)
    await succeeded(both, "m2")
    sent = source.sent
    await both.resume("m1")
    await succeeded(both, "m1")
    assert source.sent == sent


async def test_after_a_restart_the_first_goes_on_and_the_second_waits(
    half: Service, source: RangedServer, restart: Restart
) -> None:
    await half.start("m2", source.url)
    service, _ = await restart()
    await succeeded(service, "m1", "m2")
    assert source.sent <= len(DATA) + HEADER + AGAIN


async def test_the_second_fetches_the_bytes_if_the_first_fails(
    parted: OpenWith, web: ModelServer, source: RangedServer
) -> None:
    web.etag = ETAG
    web.files["m.gguf"] = data = model_bytes(size=1 << 20)
    web.hold_after["m.gguf"] = 1 << 19
    service = await parted(http_source_hosts=(web.host,))
    # The request of the first one names another digest than the source has.
    await service.start("m1", web.url("m.gguf"), sha256="0" * 64)
    await asyncio.wait_for(web.holding.wait(), 30)
    await service.start("m2", web.url("m.gguf"))
    web.go_on.set()
    assert (await service.state("m1")).error.reason == "CONTENT_MISMATCH"
    found = await service.state("m2")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(data))
    assert web.asked == ["m.gguf", "m.gguf"]


async def test_a_projector_that_a_user_chose_and_that_stalls_holds_nobody_else(
    sqlite_service: Service, web: ModelServer, as_caller: AsCaller
) -> None:
    web.etag = ETAG
    web.files |= {"m.gguf": model_bytes(size=1 << 20), "p.gguf": model_bytes("p", size=1 << 20)}
    web.hold_after["p.gguf"] = 10
    await sqlite_service.start("m1", web.url("m.gguf"), projector=web.url("p.gguf"))
    await asyncio.wait_for(web.holding.wait(), 30)
    sqlite_service.caller = as_caller("bob", "manage")
    assert (await sqlite_service.fetched("m2", web.url("m.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await sqlite_service.get("m1")).state == pb.DOWNLOAD_STATE_RUNNING


async def test_the_second_begins_if_the_first_gets_nothing_for_minutes(
    sqlite_service: Service, web: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_holds, "MAX_STILL_SECONDS", 0.5)
    web.etag = ETAG
    web.files["m.gguf"] = model_bytes(size=1 << 20)
    web.hold_after["m.gguf"] = 1 << 19
    await sqlite_service.start("m1", web.url("m.gguf"))
    await asyncio.wait_for(web.holding.wait(), 30)
    web.hold_after.clear()
    assert (await sqlite_service.fetched("m2", web.url("m.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await sqlite_service.get("m1")).state == pb.DOWNLOAD_STATE_RUNNING


async def test_the_second_waits_for_no_bytes_that_it_could_not_recognise(
    sqlite_service: Service, web: ModelServer
) -> None:
    """The server gives neither a digest nor an ETag: each of the two fetches the bytes."""
    web.files["m.gguf"] = model_bytes(size=1 << 20)
    web.hold_after["m.gguf"] = 1 << 19
    await sqlite_service.start("m1", web.url("m.gguf"))
    await asyncio.wait_for(web.holding.wait(), 30)
    await sqlite_service.start("m2", web.url("m.gguf"))
    await sqlite_service.state("m2", pb.DOWNLOAD_STATE_RUNNING)
    assert (await sqlite_service.get("m1")).state == pb.DOWNLOAD_STATE_RUNNING
