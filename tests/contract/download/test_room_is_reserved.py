"""Downloads that fit alone and not together do not both begin: each reserves its room before its first byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, Service
from tests.contract.download.small_disk import Disk
from tests.contract.patience import PATIENCE
from tests.contract.ranged_source import RangedServer, large_model, ranged_server
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


async def refused(service: Service, source: str) -> str:
    found = await service.fetched("m2", source)
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
    return found.error.message


async def test_the_second_is_refused_before_its_first_byte_and_the_first_one_ends(
    busy: Service, source: RangedServer, other: RangedServer
) -> None:
    message = await refused(busy, other.url)
    assert f"need {len(OTHER)} more bytes" in message
    assert "of which other downloads need" in message
    assert other.ranges == []
    source.go_on_until(SIZE * 100)
    assert (await busy.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    # The room of the first one is used now, and not reserved.
    assert "of which other downloads need" not in await refused(busy, other.url)


async def test_a_model_of_several_files_is_refused_as_a_whole(busy: Service, other: RangedServer) -> None:
    files = Parts(2, SIZE // 2).files()
    other.files = {f"/{name}": data for name, data in files.items()}
    message = await refused(busy, f"http://{other.host}/{part_name('tiny', 1, 2)}")
    assert f"need {sum(map(len, files.values()))} more bytes" in message
    assert other.ranges == []


async def test_a_cancelled_download_gives_its_room_back(
    busy: Service, source: RangedServer, other: RangedServer
) -> None:
    await refused(busy, other.url)
    await busy.cancel("m1")
    await busy.no_files()
    assert (await busy.fetched("m2")).state == pb.DOWNLOAD_STATE_SUCCEEDED
