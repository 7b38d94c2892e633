"""A model whose source has changed: the start of its download says so, and an update changes the model in one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import Service, import_file, sha256
from tests.contract.model_source import model_bytes
from tests.contract.rich_status import refused
from tests.split_models import projector_bytes
from tests.unit.gguf_bytes import File

OLD, NEW = File().build(), model_bytes("new", 4096)


@pytest.mark.parametrize("data", [NEW, OLD])
async def test_a_start_says_that_the_source_has_changed(service: Service, data: bytes) -> None:
    source = import_file(service, "a.gguf", OLD)
    await service.fetched("m1", source)
    if data != OLD:
        import_file(service, "a.gguf", data)
    assert not (await service.start("m1", source)).source_changed, "nobody asked"
    compared = await service.start("m1", source, compare=True)
    assert (compared.state, compared.source_changed) == (pb.DOWNLOAD_STATE_SUCCEEDED, data != OLD)
    assert (await service.model("m1")).sha256 == sha256(OLD)


async def test_a_source_that_is_gone_has_not_changed(service: Service) -> None:
    source = import_file(service, "a.gguf", OLD)
    await service.fetched("m1", source)
    Path(source).unlink()
    assert not (await service.start("m1", source, compare=True)).source_changed


async def test_an_update_replaces_the_model_and_keeps_its_companions(service: Service) -> None:
    source, projector = import_file(service, "a.gguf", OLD), import_file(service, "p.gguf", projector_bytes())
    await service.fetched("m1", source, projector=projector, sha256=sha256(OLD))
    import_file(service, "a.gguf", NEW)
    download = await service.fetched("m1", source, update=True)
    assert (download.state, download.error.message, download.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, "", sha256(NEW))
    model = await service.model("m1")
    assert (model.sha256, len(model.files)) == (sha256(NEW), 2)
    assert (await service.path("m1")).read_bytes() == NEW
    assert not (await service.start("m1", source, compare=True)).source_changed


async def test_an_update_that_fails_leaves_the_model_as_it_is(service: Service) -> None:
    source = import_file(service, "a.gguf", OLD)
    await service.fetched("m1", source)
    import_file(service, "a.gguf", b"GGUF and nothing more")
    assert (await service.fetched("m1", source, update=True)).state == pb.DOWNLOAD_STATE_FAILED
    assert (await service.path("m1")).read_bytes() == OLD


async def test_another_file_of_the_same_name_is_told_from_another_source(service: Service) -> None:
    source, other = import_file(service, "a.gguf", OLD), import_file(service, "b.gguf", NEW)
    folder = Path(source).parent / "folder"
    folder.mkdir()
    changed = str(Path(other).rename(folder / "a.gguf"))
    await service.fetched("m1", source)
    with refused("DOWNLOAD_CONFLICT") as refusal:
        await service.start("m1", changed)
    assert refusal.metadata["rule"] == "changed"
    assert "m1 was fetched from another file a.gguf, or from this one before it changed" in refusal.message
    assert (await service.fetched("m1", changed, update=True)).sha256 == sha256(NEW)


@pytest.mark.parametrize("given", [{}, {"projector": "none"}])
async def test_an_update_from_another_file_keeps_the_companions_that_it_leaves_out(
    service: Service, given: dict[str, str]
) -> None:
    source, changed = import_file(service, "a.gguf", OLD), import_file(service, "b.gguf", NEW)
    projector = import_file(service, "p.gguf", projector_bytes())
    await service.fetched("m1", source, projector=projector)
    assert (await service.fetched("m1", changed, update=True, **given)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    model = await service.model("m1")
    assert (model.sha256, len(model.files)) == (sha256(NEW), 1 if given else 2)
