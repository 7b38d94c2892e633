"""A server that sends what is no payload without end fails its own download; the service answers and fetches for others meanwhile."""

from __future__ import annotations

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import TINY, OpenWith
from tests.contract.model_source import ModelServer
from tests.contract.ranged_source import large_model
from tests.unit.hostile_server import CHUNKED, EARLY_HINTS, Hostile

BEGINNING = large_model(1 << 20, seed=1)[: 1 << 19]


@pytest.mark.parametrize(
    ("once", "again", "words"),
    [
        pytest.param(b"", EARLY_HINTS, "of interim responses and headers", id="interim responses"),
        pytest.param(
            CHUNKED + b"%x\r\n%s\r\n" % (len(BEGINNING), BEGINNING), b"1\r\n\0\r\n", "too small", id="chunks of a byte"
        ),
    ],
)
async def test_a_hostile_source_ends_its_own_download_only(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, once: bytes, again: bytes, words: str
) -> None:
    web.files["m.gguf"] = TINY
    async with Hostile(once, again).serving() as host:
        service = await open_with(one_settings, http_source_hosts=(web.host, host))
        await service.start("m1", f"http://{host}/m.gguf")
        assert (await service.fetched("m2", web.url("m.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
        found = await service.state("m1")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "SOURCE_UNAVAILABLE")
    assert words in found.error.message
    assert "given up after" not in found.error.message, "another try would meet the same server"
    assert [path for path in service.stored if path.suffix == ".part"] == []
