"""LoRA adapters belong to their model: named by who fetches it, checked against it, and fetched, recorded and removed with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.v1 import download_pb2 as pb
from llamesh.v1 import model_pb2
from tests.contract.download.conftest import TINY, Service, import_file, sha256
from tests.contract.rich_status import refused
from tests.split_models import adapter_bytes, projector_bytes
from tests.unit.gguf_bytes import File

MODEL = File().build()
ADAPTER = adapter_bytes()


async def fetched(service: Service, source: str, projector: str = "", **adapters: str) -> pb.Download:
    """Fetch the model m1 with adapters, and wait for its end."""
    listed = [pb.AdapterSource(name=name, source=where) for name, where in adapters.items()]
    request = pb.StartDownloadRequest(model_uuid="m1", source=source, projector=projector, adapters=listed)
    await service.downloads.StartDownload(request, metadata=service.caller)
    return await service.state("m1")


async def names(service: Service) -> list[str]:
    return [file.name for file in (await service.model("m1")).files]


async def test_adapters_come_and_go_with_their_model(service: Service) -> None:
    source, adapter = import_file(service, "a.gguf", MODEL), import_file(service, "l.gguf", ADAPTER)
    projector = import_file(service, "p.gguf", projector_bytes())
    download = await fetched(service, source, projector, style=adapter)
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    model = await service.model("m1")
    assert [file.name for file in model.files] == ["a.gguf", "p.gguf", "style"]
    assert model.files[2].role == model_pb2.MODEL_FILE_ROLE_ADAPTER
    assert (model.files[2].sha256, model.sha256) == (sha256(ADAPTER), sha256(MODEL))
    located = await service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid="m1"))
    assert Path(located.file_paths[2]).read_bytes() == ADAPTER
    await service.delete("m1")
    await service.no_files()


async def test_adapters_are_exchanged_and_kept(service: Service) -> None:
    source, adapter = import_file(service, "a.gguf", MODEL), import_file(service, "l.gguf", ADAPTER)
    await fetched(service, source)
    await fetched(service, source, style=adapter, law=adapter)
    assert await names(service) == ["a.gguf", "style", "law"]
    assert len(service.stored) == 2, "files with the same bytes share one object"
    await fetched(service, source)
    assert await names(service) == ["a.gguf", "style", "law"]
    await fetched(service, source, law=adapter)
    assert await names(service) == ["a.gguf", "law"]
    assert len(service.stored) == 2


REFUSED = {
    "a model": (TINY, "the file is no LoRA adapter: its general.type is 'model'"),
    "another kind": (adapter_bytes(kind="dora"), "its adapter.type 'dora'"),
    "another architecture": (adapter_bytes(architecture="qwen3"), "is for the architecture qwen3"),
    "a tensor that the model lacks": (adapter_bytes("blk.9.attn_q.weight"), "changes the tensor blk.9.attn_q.weight"),
    "another width": (adapter_bytes(shapes=((4, 3), (4, 16))), "token_embd.weight.lora_b has the shape (4, 16)"),
    "another number of rows": (adapter_bytes(shapes=((4, 5), (4, 8))), "token_embd.weight.lora_a has the shape (4, 5)"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(sqlite_service: Service, case: str) -> None:
    data, problem = REFUSED[case]
    source, adapter = import_file(sqlite_service, "a.gguf", MODEL), import_file(sqlite_service, "l.gguf", data)
    download = await fetched(sqlite_service, source, style=adapter)
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")
    assert problem in download.error.message
    assert sqlite_service.stored == []


async def test_names_and_sources_of_adapters_are_checked(sqlite_service: Service) -> None:
    source = import_file(sqlite_service, "a.gguf", MODEL)
    with refused("SOURCE_REFUSED") as error:
        await fetched(sqlite_service, source, style="ftp://x/y.gguf")
    assert error.fields == ["adapters"]
    for listed in (
        [("a,b", source)],
        [("a:1", source)],
        [("a", source), ("a", source)],
        [(f"a{n}", source) for n in range(9)],
    ):
        adapters = [pb.AdapterSource(name=name, source=where) for name, where in listed]
        request = pb.StartDownloadRequest(model_uuid="m1", source=source, adapters=adapters)
        with refused("INVALID_FIELD"):
            await sqlite_service.downloads.StartDownload(request, metadata=sqlite_service.caller)


async def test_a_model_loses_its_adapters_if_none_is_asked_for(service: Service) -> None:
    source, style = import_file(service, "a.gguf", MODEL), import_file(service, "style.gguf", ADAPTER)
    await fetched(service, source, style=style)
    for given, left in (({}, 2), ({"none": "none"}, 1), ({}, 1)):
        assert (await fetched(service, source, **given)).state == pb.DOWNLOAD_STATE_SUCCEEDED
        assert len((await service.model("m1")).files) == left, given
