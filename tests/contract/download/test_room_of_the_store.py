"""The room of the store is checked before bytes are fetched, also by a run that goes on: what is on the disk needs no room again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, Service, sha256
from tests.contract.download.journal import HEADER, counted, opened, until
from tests.contract.download.small_disk import Disk
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import RangedServer, large_model, ranged_server
from tests.split_models import Parts, part_name

LARGE = 12 << 20
PART = 4 << 20
PARALLEL = 2
SLACK = 1 << 18
"""What a tight disk has more than the model needs. Less than a killed writer has written and not recorded."""
StopMember = Callable[[Member], Awaitable[None]]


def parts_of(source: RangedServer) -> int:
    """Serve a model in three parts, and return the number of its bytes."""
    files = Parts(size=LARGE).files()
    source.files = {f"/{name}": data for name, data in files.items()}
    return sum(map(len, files.values()))


async def start(source: RangedServer, settings: Settings, open_with: OpenWith) -> Service:
    service = await open_with(
        settings,
        http_source_hosts=(source.host,),
        download_part_bytes=PART,
        download_parallel_parts=PARALLEL,
    )
    if (await service.downloads.ListDownloads(pb.ListDownloadsRequest(), metadata=service.caller)).downloads:
        return service
    path = f"/{part_name('tiny', 1, 3)}" if source.files else "/model.gguf"
    await service.start("m1", f"http://{source.host}{path}")
    return service


async def begun(source: RangedServer, settings: Settings, open_with: OpenWith, disk: Disk) -> Service:
    """Start a download and wait until a part is recorded, and bytes are on the disk that are not."""
    # Parts 1 and 2, and less than a part of the next.
    source.stop_at = HEADER + 2 * PART + 3 * PART // 4
    service = await start(source, settings, open_with)
    async with opened(settings) as journal:

        async def unrecorded() -> bool:
            recorded = (await counted(journal))[1]
            return recorded > 0 and disk.used > recorded * PART + SLACK

        await until(unrecorded)
    return service


async def test_a_model_for_which_there_is_no_room_as_a_whole_costs_the_headers_only(
    one_settings: Settings, open_with: OpenWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part alone fits: all but the last were fetched before the store was full."""
    parts = Parts(size=LARGE).files()
    async with ranged_server(b"") as source:
        source.files = {f"/{name}": data for name, data in parts.items()}
        service = await open_with(one_settings, http_source_hosts=(source.host,), download_part_bytes=PART)
        Disk(2 * LARGE + LARGE // 2, service.settings, monkeypatch)
        download = await service.fetched("m1", f"http://{source.host}/{part_name('tiny', 1, 3)}")
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
    total = sum(map(len, parts.values()))
    assert f"the files of the model need {total} more bytes and the object store has" in download.error.message
    assert source.ranges == [], "nothing but the beginnings was read"
    assert service.stored == []


@pytest.mark.parametrize("files", [1, 3])
async def test_what_a_killed_run_has_written_and_not_recorded_needs_no_room_again(
    one_settings: Settings, open_with: OpenWith, stop_member: StopMember, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    data = large_model(3 * LARGE, seed=5)
    async with ranged_server(data) as source:
        total = parts_of(source) if files > 1 else len(data)
        disk = Disk(total + SLACK, one_settings, monkeypatch)
        service = await begun(source, one_settings, open_with, disk)
        await stop_member(service.member)
        source.go_on_until(total * 100)
        again = await start(source, one_settings, open_with)
        download = await again.state("m1")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")


async def test_the_parts_that_a_paused_download_has_need_no_room_again(
    one_settings: Settings, open_with: OpenWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ranged_server(b"") as source:
        total = parts_of(source)
        disk = Disk(total + SLACK, one_settings, monkeypatch)
        service = await begun(source, one_settings, open_with, disk)
        await service.pause("m1")
        source.go_on_until(total * 100)
        await service.resume("m1")
        download = await service.state("m1")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")


@pytest.mark.parametrize("files", [1, 3])
async def test_a_run_that_goes_on_without_room_waits_for_it_and_keeps_its_parts(
    one_settings: Settings, open_with: OpenWith, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    data = large_model(3 * LARGE, seed=5)
    async with ranged_server(data) as source:
        total = parts_of(source) if files > 1 else len(data)
        disk = Disk(total + SLACK, one_settings, monkeypatch)
        service = await begun(source, one_settings, open_with, disk)
        await service.pause("m1")
        source.go_on_until(total * 100)
        disk.size = total - PART
        kept = disk.used
        await service.resume("m1")
        async with asyncio.timeout(PATIENCE):
            while "waits for the object store" not in (waiting := await service.get("m1")).error.message:
                await asyncio.sleep(0.01)
        assert (waiting.state, waiting.error.reason) == (pb.DOWNLOAD_STATE_QUEUED, "STORE_UNAVAILABLE")
        assert "bytes free" in waiting.error.message
        assert disk.used >= kept
        sent = source.sent
        disk.size = total + SLACK
        download = await service.state("m1")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert files > 1 or download.sha256 == sha256(data)
    assert source.sent - sent < total, "the parts were not fetched again"
