"""LLAMESH_DOWNLOAD_BYTES_PER_SECOND holds for all downloads from other machines together, in parts or as a stream."""

from __future__ import annotations

import time

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, import_file
from tests.contract.download.in_parts import PARALLEL, PART
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.ranged_source import large_model, ranged_server

RATE = 2 << 20


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
