"""Every fault of a source ends a transfer with a clear state and reason, in one stream and in parts, and leaves nothing in the store."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from services.download.sources import HttpsSource
from tests.contract.download.conftest import OpenWith, Service, sha256
from tests.contract.download.faults import s3
from tests.contract.download.journal import counted, opened, until
from tests.contract.download.peer_faults import DATA, OTHER, PART, PEER_FAULTS
from tests.contract.ranged_source import RangedServer, ranged_server
from tests.contract.rich_status import refused
from tests.files import files_below
from tests.unit.fake_s3 import FakeS3

__all__ = ["s3"]

KINDS = {"stream": False, "parts": True}
CASES = [(fault, kind) for fault, case in PEER_FAULTS.items() for kind in KINDS if getattr(case, kind)]


@pytest.fixture
async def source() -> AsyncIterator[RangedServer]:
    async with ranged_server(DATA) as server:
        yield server


@pytest.fixture
async def peer_service(
    one_settings: Settings,
    open_with: OpenWith,
    source: RangedServer,
    s3: FakeS3,
    monkeypatch: pytest.MonkeyPatch,
) -> Service:
    """Writes to a bucket in two parts at once, and gives a silent peer up soon."""
    monkeypatch.setitem(HttpsSource.__init__.__kwdefaults__, "silence_seconds", 0.03)
    monkeypatch.setattr("services.download.source_retries.FIRST_SECONDS", 0.001)
    monkeypatch.setattr("services.download.worker.POLL_SECONDS", 0.05)
    return await open_with(
        one_settings,
        minio_endpoint=s3.endpoint,
        minio_access_key=SecretStr(s3.access_key),
        minio_secret_key=SecretStr(s3.secret_key),
        http_source_hosts=(source.host,),
        download_part_bytes=PART,
        download_parallel_parts=2,
    )


async def left(service: Service, s3: FakeS3) -> int:
    """Wait until the transfer has left nothing but published objects, and return their number."""

    async def settled() -> bool:
        staged = [key for key in s3.objects if not key.startswith("models/")]
        files = files_below(service.settings.home / "objects")
        return await counted(database) == (0, 0) and not s3.uploads and not staged and not files

    async with opened(service.settings) as database:
        await until(settled)
    return len(s3.objects)


@pytest.mark.parametrize(("fault", "kind"), CASES)
async def test_a_fault_has_a_state_and_a_reason_and_leaves_nothing_without_its_record(
    peer_service: Service, source: RangedServer, s3: FakeS3, fault: str, kind: str
) -> None:
    source.has_ranges = KINDS[kind]
    source.fault = PEER_FAULTS[fault].make()
    end = getattr(PEER_FAULTS[fault], kind)
    found = await peer_service.fetched("m1", source.url, sha256=sha256(DATA))
    assert (found.state, found.error.reason) == (end.state, end.reason), found.error.message
    assert end.words in found.error.message
    listed = (await peer_service.catalogue.ListCatalogueModels(pb.ListCatalogueModelsRequest())).models
    if end.state == pb.DOWNLOAD_STATE_SUCCEEDED:
        assert (await left(peer_service, s3), found.sha256) == (1, sha256(DATA))
        assert [model.model_uuid for model in listed] == ["m1"]
    else:
        # The parts of a failure of the source are kept for a new start, until the record is removed.
        request = pb.DeleteDownloadRequest(model_uuid="m1")
        await peer_service.downloads.DeleteDownload(request, metadata=peer_service.caller)
        assert (await left(peer_service, s3), list(listed)) == (0, [])
        with refused("MODEL_NOT_FOUND"):
            await peer_service.model("m1")


@pytest.mark.parametrize("kind", KINDS)
async def test_two_files_for_one_model_are_refused_and_the_first_one_stays(
    peer_service: Service, source: RangedServer, s3: FakeS3, kind: str
) -> None:
    source.has_ranges = KINDS[kind]
    source.files["/other.gguf"] = OTHER
    other = f"http://{source.host}/other.gguf"
    await peer_service.start("m1", source.url)
    with refused("DOWNLOAD_CONFLICT"):
        await peer_service.start("m1", other)
    found = await peer_service.state("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(DATA))
    with refused("DOWNLOAD_CONFLICT"):
        await peer_service.start("m1", other)
    assert await left(peer_service, s3) == 1
