"""Downloads that fit alone and not together do not both begin: the second waits until the first ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, Service
from tests.contract.download.journal import HEADER
from tests.contract.download.small_disk import Disk
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import BLOCK, Answer, RangedServer, large_model, ranged_server
from tests.split_models import Parts, part_name

SIZE = 4 << 20
ONE, OTHER = (large_model(SIZE, seed) for seed in (1, 2))


@pytest.fixture
async def other() -> AsyncIterator[RangedServer]:
    async with ranged_server(OTHER) as server:
        yield server


@pytest.fixture
async def source() -> AsyncIterator[RangedServer]:
    async with ranged_server(ONE) as server:
        yield server


@pytest.fixture
async def busy(
    one_settings: Settings,
    open_with: OpenWith,
    source: RangedServer,
    other: RangedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Service:
    """Has half of m1, which fits; the disk has no room for another one beside it."""
    service = await open_with(
        one_settings,
        http_source_hosts=(source.host, other.host),
        download_part_bytes=1 << 20,
        download_parallel_parts=1,
    )
    Disk(SIZE + SIZE // 2 + (1 << 20), service.settings, monkeypatch)
    source.stop_at = (1 << 20) + SIZE // 2
    await service.start("m1", source.url)
    await asyncio.wait_for(source.stopped.wait(), PATIENCE)
    return service


async def waiting(service: Service, source: str) -> str:
    """Start m2 and wait until it waits for m1; return the reason."""
    await service.start("m2", source)
    async with asyncio.timeout(PATIENCE):
        while not (found := await service.get("m2")).error.reason:
            await asyncio.sleep(0.01)
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_QUEUED, "STORE_UNAVAILABLE")
    assert "waits for other downloads" in found.error.message
    return found.error.message


async def test_the_second_waits_with_its_header_checked_and_fails_if_the_first_one_leaves_no_room(
    busy: Service, source: RangedServer, other: RangedServer
) -> None:
    message = await waiting(busy, other.url)
    assert f"need {len(OTHER)} more bytes" in message
    assert "of which other downloads need" in message
    assert other.ranges == [(0, HEADER)]
    source.go_on_until(SIZE * 100)
    assert (await busy.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    # The room of the first one is used now, and not reserved.
    failed = await busy.state("m2")
    assert (failed.state, failed.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
    assert "of which other downloads need" not in failed.error.message


async def test_a_model_of_several_files_waits_as_a_whole(busy: Service, other: RangedServer) -> None:
    files = Parts(2, SIZE // 2).files()
    other.files = {f"/{name}": data for name, data in files.items()}
    message = await waiting(busy, f"http://{other.host}/{part_name('tiny', 1, 2)}")
    assert f"need {sum(map(len, files.values()))} more bytes" in message
    assert other.ranges == []


async def test_a_download_that_waits_goes_on_when_the_other_one_is_cancelled(
    busy: Service, source: RangedServer, other: RangedServer
) -> None:
    await waiting(busy, other.url)
    await busy.cancel("m1")
    found = await busy.state("m2")
    assert (found.state, found.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")


async def test_a_download_that_is_too_slow_keeps_what_it_has_and_yields_the_rest_of_its_room(
    busy: Service, source: RangedServer, other: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.retry_backoffs.ROOM_SECONDS", 0.1)
    assert "that of m1" in await waiting(busy, other.url)
    monkeypatch.setattr("services.download.paces.WINDOW_SECONDS", 0.1)
    assert (await busy.state("m2")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    monkeypatch.setattr("services.download.retry_backoffs.ROOM_SECONDS", 60.0)
    source.go_on_until(SIZE * 100)
    waits = await busy.state("m1", pb.DOWNLOAD_STATE_QUEUED)
    assert (waits.error.reason, "so the download of m2 has got its room" in waits.error.message) == (
        "STORE_UNAVAILABLE",
        True,
    )
    assert [path.suffix for path in busy.stored].count(".parts") == 1, "it keeps its parts"


async def test_a_claimed_length_gets_no_room_before_the_header_has_come(busy: Service, other: RangedServer) -> None:
    """m1 has its room already. The connection of m2 stalls within the header, so m3 gets the rest of the disk."""
    other.has_ranges = False

    def stall(request: web.Request, answer: Answer) -> None:
        if request.path == "/silent.gguf":
            answer.body, answer.length, answer.silent = OTHER[:BLOCK], SIZE // 2, True

    other.fault = stall
    other.files["/small.gguf"] = small = large_model(SIZE // 4, seed=3)
    await busy.start("m2", f"http://{other.host}/silent.gguf")
    await busy.state("m2", pb.DOWNLOAD_STATE_RUNNING)
    found = await busy.fetched("m3", f"http://{other.host}/small.gguf")
    assert (found.state, found.bytes_done) == (pb.DOWNLOAD_STATE_SUCCEEDED, len(small))


async def test_a_file_of_unknown_size_leaves_the_room_of_others_alone(
    busy: Service, source: RangedServer, other: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.room.STEP_BYTES", 1 << 20)
    other.has_ranges = False

    def without_length(_: web.Request, answer: Answer) -> None:
        answer.chunked = True

    other.fault = without_length
    await waiting(busy, other.url)
    assert [path for path in busy.stored if path.suffix == ".part"] == [], "its bytes are removed"
    source.go_on_until(SIZE * 100)
    assert (await busy.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    failed = await busy.state("m2")
    assert (failed.state, "bytes free for models" in failed.error.message) == (pb.DOWNLOAD_STATE_FAILED, True)
