"""A projector belongs to its model: found beside it on the Hub or named, checked against it, and fetched, recorded and removed with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from llamesh.v1 import model_pb2
from tests.contract.download.conftest import TINY, OpenWith, Service, import_file, sha256
from tests.contract.download.journal import until
from tests.contract.rich_status import refused
from tests.split_models import Parts, projector_bytes
from tests.unit.fake_hub import COMMIT, Repository, fake_hub
from tests.unit.gguf_bytes import File

MODEL = File().build()
PROJECTOR = projector_bytes()
WEIGHTS, VISION = model_pb2.MODEL_FILE_ROLE_WEIGHTS, model_pb2.MODEL_FILE_ROLE_PROJECTOR


async def files(service: Service, model_uuid: str = "m1") -> list[tuple[int, str, str]]:
    return [(file.role, file.name, file.sha256) for file in (await service.model(model_uuid)).files]


async def test_a_named_projector_comes_and_goes_with_its_model(service: Service) -> None:
    source, projector = import_file(service, "a.gguf", MODEL), import_file(service, "p.gguf", PROJECTOR)
    download = await service.fetched("m1", source, projector=projector)
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert download.bytes_total == len(MODEL) + len(PROJECTOR)
    assert (download.name, download.sha256) == ("a.gguf", sha256(MODEL))
    assert await files(service) == [(WEIGHTS, "a.gguf", sha256(MODEL)), (VISION, "p.gguf", sha256(PROJECTOR))]
    model = await service.model("m1")
    assert model_pb2.MODALITY_MEDIA in model.gguf.modalities
    assert (model.gguf.architecture, model.gguf.tensor_bytes) == ("llama", 96 + 32)
    located = await service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid="m1"))
    assert [Path(path).read_bytes() for path in located.file_paths] == [MODEL, PROJECTOR]
    await service.delete("m1")
    await service.no_files()


async def test_a_projector_is_added_to_a_model_and_taken_from_it(service: Service) -> None:
    source, projector = import_file(service, "a.gguf", MODEL), import_file(service, "p.gguf", PROJECTOR)
    await service.fetched("m1", source)
    for given, count in ((projector, 2), ("", 2), ("none", 1), ("", 1)):
        await service.fetched("m1", source, projector=given)
        assert len(await files(service)) == count, given

        async def stored(count: int = count) -> bool:
            return len(service.stored) == count

        # The object of a file that left the model is removed after the success can be seen.
        await until(stored)


async def test_parts_and_a_projector_are_one_model(service: Service) -> None:
    source = [import_file(service, name, data) for name, data in Parts().files().items()][0]  # noqa: RUF015 - all are written
    download = await service.fetched("m1", source, projector=import_file(service, "p.gguf", PROJECTOR))
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert [role for role, _, _ in await files(service)] == [WEIGHTS, WEIGHTS, WEIGHTS, VISION]
    located = await service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid="m1"))
    assert [Path(path).read_bytes() for path in located.file_paths] == [*Parts().files().values(), PROJECTOR]


REFUSED = {
    "of another width": (projector_bytes(16), "makes embeddings of 16 numbers and the model has 8"),
    "a model": (TINY, "the projector's architecture is llama, not clip"),
    "without a type": (projector_bytes(projector=""), "does not say its type"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_projector_that_does_not_fit_is_refused_and_leaves_nothing(sqlite_service: Service, case: str) -> None:
    data, problem = REFUSED[case]
    source, projector = import_file(sqlite_service, "a.gguf", MODEL), import_file(sqlite_service, "p.gguf", data)
    download = await sqlite_service.fetched("m1", source, projector=projector)
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")
    assert problem in download.error.message
    assert sqlite_service.stored == []


async def test_a_projector_of_an_earlier_converter_passes(sqlite_service: Service) -> None:
    """Its length is that of another layer."""
    projector = import_file(sqlite_service, "p.gguf", projector_bytes(768, kind=""))
    download = await sqlite_service.fetched("m1", import_file(sqlite_service, "a.gguf", MODEL), projector=projector)
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")


@pytest.mark.parametrize("kind", ["", "mmproj"])
async def test_a_projector_alone_is_no_model(sqlite_service: Service, kind: str) -> None:
    source = import_file(sqlite_service, "p.gguf", projector_bytes(kind=kind))
    download = await sqlite_service.fetched("m1", source)
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")


async def test_a_source_that_is_refused_names_the_field(sqlite_service: Service) -> None:
    source = import_file(sqlite_service, "a.gguf", MODEL)
    with refused("SOURCE_REFUSED") as error:
        await sqlite_service.start("m1", source, projector="ftp://x/y.gguf")
    assert error.fields == ["projector"]


FOUND = {
    "the only one": (["mmproj-a.gguf"], "mmproj-a.gguf"),
    "by type": (["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
    "in the folder of the model": (["mmproj-F16.gguf", "Q8_0/mmproj-F32.gguf"], "mmproj-F32.gguf"),
}


@pytest.mark.parametrize("case", FOUND)
async def test_the_projector_beside_a_model_on_the_hub_comes_with_it(
    one_settings: Settings, open_with: OpenWith, case: str
) -> None:
    names, wanted = FOUND[case]
    async with fake_hub() as hub:
        others = {name: projector_bytes(label=at) for at, name in enumerate(names)}
        hub.repositories["ada/sees-GGUF"] = Repository({"Q8_0/sees-Q8_0.gguf": MODEL, **others})
        service = await open_with(one_settings, hf_endpoint=hub.url)
        download = await service.fetched("m1", "hf:ada/sees-GGUF")
        assert (download.state, download.revision) == (pb.DOWNLOAD_STATE_SUCCEEDED, COMMIT)
        assert [name for _, name, _ in await files(service)] == ["sees-Q8_0.gguf", wanted]
        await service.fetched("m2", "hf:ada/sees-GGUF", projector="none")
        assert len(await files(service, "m2")) == 1
