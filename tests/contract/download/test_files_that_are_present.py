"""Bytes that the store has are not fetched again: neither the weights that get a projector, nor what a source announces by its digest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, Service, import_file, sha256
from tests.contract.download.in_parts import DATA, PARALLEL, PART
from tests.contract.download.journal import until
from tests.contract.download.small_disk import Disk
from tests.contract.ranged_source import RangedServer, large_model
from tests.split_models import adapter_bytes, projector_bytes
from tests.unit.fake_hub import FakeHub, Repository, fake_hub
from tests.unit.gguf_bytes import File

MODEL = File().build()
PROJECTOR = projector_bytes()
OTHER = large_model(len(DATA) // 32 * 32, seed=5)


async def stores(service: Service, *files: bytes) -> None:
    """Wait until the store has these objects only."""

    async def settled() -> bool:
        return sorted(path.stat().st_size for path in service.stored) == sorted(map(len, files))

    await until(settled)
    assert {path.read_bytes() for path in service.stored} == set(files)


@pytest.fixture
async def weights(one_settings: Settings, open_with: OpenWith, source: RangedServer) -> Service:
    """Has the model m1 of the source, whose weights came in parts."""
    settings = {"download_part_bytes": PART, "download_parallel_parts": PARALLEL}
    service = await open_with(one_settings, http_source_hosts=(source.host,), **settings)
    source.files["/p.gguf"] = PROJECTOR
    assert (await service.fetched("m1", source.url)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    # The staged file is removed after the success can be seen.
    await stores(service, DATA)
    source.ranges.clear()
    return service


async def with_projector(service: Service, source: RangedServer) -> pb.Download:
    return await service.fetched("m1", projector=f"http://{source.host}/p.gguf")


async def test_a_projector_comes_to_weights_that_stay_where_they_are(
    weights: Service, source: RangedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    [before] = weights.stored
    # A second copy of the weights would not fit.
    Disk(len(DATA) + (1 << 20), weights.settings, monkeypatch)
    found = await with_projector(weights, source)
    assert (found.state, found.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert found.bytes_done == found.bytes_total == len(DATA) + len(PROJECTOR)
    assert source.ranges == []
    assert [file.sha256 for file in (await weights.model("m1")).files] == [sha256(DATA), sha256(PROJECTOR)]
    await stores(weights, DATA, PROJECTOR)
    assert before in weights.stored


@pytest.mark.parametrize("etag", ['"v2"', 'W/"v1"', ""])
async def test_weights_that_may_be_others_are_fetched_again(weights: Service, source: RangedServer, etag: str) -> None:
    source.etag, source.data = etag, OTHER
    found = await with_projector(weights, source)
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(OTHER))
    await stores(weights, OTHER, PROJECTOR)


async def test_lost_weights_are_fetched_again(weights: Service, source: RangedServer) -> None:
    weights.stored[0].unlink()
    assert (await with_projector(weights, source)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert source.ranges
    await stores(weights, DATA, PROJECTOR)


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with fake_hub() as server:
        server.repositories["ada/tiny-GGUF"] = Repository({"tiny-Q8_0.gguf": MODEL})
        server.repositories["eve/copy-GGUF"] = Repository({"copy-Q8_0.gguf": MODEL})
        yield server


async def test_bytes_that_the_store_has_by_digest_are_not_fetched_for_another_model(
    one_settings: Settings, open_with: OpenWith, hub: FakeHub
) -> None:
    service = await open_with(one_settings, hf_endpoint=hub.url)
    assert (await service.fetched("m1", "hf:ada/tiny-GGUF")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    found = await service.fetched("m2", "hf:eve/copy-GGUF")
    assert (found.state, found.bytes_done) == (pb.DOWNLOAD_STATE_SUCCEEDED, len(MODEL))
    model = await service.model("m2")
    assert (model.name, model.sha256, model.files[0].name) == ("copy", sha256(MODEL), "copy-Q8_0.gguf")
    await stores(service, MODEL)
    await service.delete("m1")
    assert (await service.path("m2")).read_bytes() == MODEL


async def test_an_adapter_comes_to_a_model_of_the_hub(
    one_settings: Settings, open_with: OpenWith, hub: FakeHub
) -> None:
    service = await open_with(one_settings, hf_endpoint=hub.url)
    await service.fetched("m1", "hf:ada/tiny-GGUF")
    [before] = service.stored
    adapter = import_file(service, "style.gguf", adapter_bytes())
    listed = [pb.AdapterSource(name="style", source=adapter)]
    await service.downloads.StartDownload(
        pb.StartDownloadRequest(model_uuid="m1", adapters=listed), metadata=service.caller
    )
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert [file.sha256 for file in (await service.model("m1")).files] == [sha256(MODEL), sha256(adapter_bytes())]
    await stores(service, MODEL, adapter_bytes())
    assert before in service.stored


async def test_a_digest_does_not_make_an_adapter_a_model(
    one_settings: Settings, open_with: OpenWith, hub: FakeHub
) -> None:
    """What the store has is checked for its role like what comes."""
    hub.repositories["eve/copy-GGUF"] = Repository({"copy-Q8_0.gguf": adapter_bytes()})
    service = await open_with(one_settings, hf_endpoint=hub.url)
    listed = [pb.AdapterSource(name="style", source=import_file(service, "style.gguf", adapter_bytes()))]
    request = pb.StartDownloadRequest(model_uuid="m1", source="hf:ada/tiny-GGUF", adapters=listed)
    await service.downloads.StartDownload(request, metadata=service.caller)
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    found = await service.fetched("m2", "hf:eve/copy-GGUF")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")
    await stores(service, MODEL, adapter_bytes())
