"""LLAMESH_DOWNLOAD_BYTES_PER_SECOND holds for all downloads from other machines together, in parts or as a stream."""

from __future__ import annotations

import hashlib
import time

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.v1 import download_pb2 as pb
from services.download.staging import parts_at_once
from tests.contract.download.conftest import OpenWith, import_file
from tests.contract.download.in_parts import PARALLEL, PART
from tests.contract.download.journal import counted, until
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.ranged_source import RangedServer, large_model, ranged_server

RATE = 2 << 20
LARGE = 4 << 20
"""Bytes of a part that arrives in several chunks."""


async def test_downloads_together_keep_the_limit(one_settings: Settings, open_with: OpenWith, web: ModelServer) -> None:
    data = large_model(3 * PART, seed=7)
    web.files["a.gguf"] = model_bytes("stream", 3 * PART)
    async with ranged_server(data) as source:
        service = await open_with(
            one_settings,
            http_source_hosts=(web.host, source.host),
            download_part_bytes=PART,
            download_parallel_parts=PARALLEL,
            download_bytes_per_second=RATE,
        )
        began = time.monotonic()
        await service.start("stream", web.url("a.gguf"))
        await service.start("parts", source.url)
        for name in ("stream", "parts"):
            assert (await service.state(name)).state == pb.DOWNLOAD_STATE_SUCCEEDED
        # The first chunk is granted at once; the header of the object in parts is read twice.
        assert time.monotonic() - began >= (len(data) + len(web.files["a.gguf"]) - PART) / RATE


async def test_at_a_limit_a_pause_costs_one_part_at_most(
    parted: OpenWith, source: RangedServer, journal: Database
) -> None:
    source.data = large_model(5 * LARGE, seed=7)
    service = await parted(download_part_bytes=LARGE, download_bytes_per_second=2 * LARGE - 1)
    await service.start("m1", source.url)

    arrived = 0

    async def half() -> bool:
        nonlocal arrived
        arrived = (await service.get("m1")).bytes_done
        return arrived >= 5 * LARGE // 2

    await until(half)
    await service.pause("m1")
    recorded = (await counted(journal))[1]
    assert arrived <= (recorded + 1) * LARGE
    before = len(source.ranges)
    await service.resume("m1")
    assert (await service.state("m1")).sha256 == hashlib.sha256(source.data).hexdigest()
    assert sum(length for _, length in source.ranges[before:]) == len(source.data) - recorded * LARGE


@pytest.mark.parametrize(("rate", "parts"), [(0, 4), (1 << 16, 1), (2 * PART - 1, 1), (2 * PART, 2), (100 * PART, 4)])
def test_a_limit_reads_the_parts_at_once_that_it_fills_in_a_second(rate: int, parts: int) -> None:
    assert parts_at_once(4, PART, rate, 4 * PART) == parts


async def test_a_file_of_this_machine_is_not_slowed_down(one_settings: Settings, open_with: OpenWith) -> None:
    """At the limit, it would take ten minutes."""
    service = await open_with(one_settings, download_bytes_per_second=1 << 16)
    path = import_file(service, "a.gguf", model_bytes("file", 40 << 20))
    assert (await service.fetched("m1", path)).state == pb.DOWNLOAD_STATE_SUCCEEDED


@pytest.mark.parametrize("value", ["1", "65535", "-1", "1 MB"])
def test_a_limit_that_is_too_low_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_DOWNLOAD_BYTES_PER_SECOND", value)
    with pytest.raises(ValueError, match="LLAMESH_DOWNLOAD_BYTES_PER_SECOND"):
        Settings()
