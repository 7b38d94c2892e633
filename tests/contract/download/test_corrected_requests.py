"""A request for a model whose last download has failed is taken as it is: what it leaves out does not come from the failed request."""

from __future__ import annotations

import pytest

from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import Service, import_file, sha256
from tests.split_models import projector_bytes
from tests.unit.gguf_bytes import File

MODEL = File().build()
PROJECTOR = projector_bytes()
OTHER_DIGEST = "0" * 64

Arguments = dict[str, object]


@pytest.fixture
def wrong(service: Service, request: pytest.FixtureRequest) -> Arguments:
    """Return arguments for which a download fails."""
    model = import_file(service, "other.gguf", MODEL)
    wrong: dict[str, Arguments] = {
        "projector": {"projector": model},
        "adapters": {"adapters": [pb.AdapterSource(name="s", source=model)]},
        "sha256": {"sha256": OTHER_DIGEST},
    }
    return wrong[request.param]


@pytest.mark.parametrize("wrong", ["projector", "adapters", "sha256"], indirect=True)
async def test_what_a_failed_request_gave_is_not_taken_over(service: Service, wrong: Arguments) -> None:
    source = import_file(service, "a.gguf", MODEL)
    assert (await service.fetched("m1", source, **wrong)).state == pb.DOWNLOAD_STATE_FAILED
    (service.settings.home / "import" / "other.gguf").unlink()
    download = await service.fetched("m1", source)
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert [file.sha256 for file in (await service.model("m1")).files] == [sha256(MODEL)]


async def test_a_request_without_a_source_takes_the_failed_one_over(service: Service) -> None:
    source, projector = import_file(service, "a.gguf", MODEL), import_file(service, "p.gguf", PROJECTOR)
    (service.settings.home / "import" / "p.gguf").unlink()
    assert (await service.fetched("m1", source, projector=projector)).state == pb.DOWNLOAD_STATE_FAILED
    import_file(service, "p.gguf", PROJECTOR)
    assert (await service.fetched("m1", "")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert len((await service.model("m1")).files) == 2


async def test_a_repair_keeps_what_belongs_to_the_model(service: Service) -> None:
    source, projector = import_file(service, "a.gguf", MODEL), import_file(service, "p.gguf", PROJECTOR)
    await service.fetched("m1", source, projector=projector)
    for each in service.stored:
        each.unlink()
    assert (await service.fetched("m1", source)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert len((await service.model("m1")).files) == 2


async def test_a_model_that_was_removed_is_asked_for_anew(service: Service) -> None:
    source, projector = import_file(service, "a.gguf", MODEL), import_file(service, "p.gguf", PROJECTOR)
    await service.fetched("m1", source, projector=projector)
    await service.delete("m1")
    (service.settings.home / "import" / "p.gguf").unlink()
    assert (await service.fetched("m1", source)).state == pb.DOWNLOAD_STATE_SUCCEEDED
