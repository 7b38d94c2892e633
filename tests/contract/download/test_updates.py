"""A model whose source has changed: the start of its download says so, and an update changes the model in one step."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamesh.kit.gguf import GgufMetadata
from llamesh.v1 import download_pb2 as pb
from services.download import source_comparison, transfer_run
from services.download.source_comparison import MAX_COMPARISONS, SourceComparison
from services.download.tables import TransferRow
from services.download.verification import verify
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


async def updated_in_vain(service: Service, source: str, ended: str, **fields: str) -> None:
    """Let an update of m1 fail, or cancel it."""
    if ended == "failed":
        data = Path(source).read_bytes()
        import_file(service, Path(source).name, b"GGUF and nothing more")
        assert (await service.fetched("m1", source, update=True, **fields)).state == pb.DOWNLOAD_STATE_FAILED
        import_file(service, Path(source).name, data)
        return
    await service.start("m1", source, update=True, **fields)
    await service.pause("m1")
    assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_CANCELLED


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Verifications wait for it."""
    event = asyncio.Event()
    event.set()

    async def held(files: Sequence[Any]) -> GgufMetadata:
        await event.wait()
        return await verify(files)

    monkeypatch.setattr(transfer_run, "verify", held)
    return event


@pytest.fixture(params=["failed", "cancelled"])
async def vain(request: pytest.FixtureRequest, service: Service, hold: asyncio.Event) -> str:
    """m1 of a.gguf, with a projector and a required digest, after an update from b.gguf with another projector that brought nothing."""
    projector, other = (import_file(service, name, projector_bytes()) for name in ("p.gguf", "q.gguf"))
    source = import_file(service, "a.gguf", OLD)
    await service.fetched("m1", source, projector=projector, sha256=sha256(OLD))
    hold.clear()
    if request.param == "failed":
        hold.set()
    await updated_in_vain(service, import_file(service, "b.gguf", NEW), request.param, projector=other)
    hold.set()
    Path(other).unlink()
    return source


async def test_an_update_after_one_in_vain_keeps_the_companions_of_the_model(service: Service, vain: str) -> None:
    other = str(Path(vain).with_name("b.gguf"))
    download = await service.fetched("m1", other, update=True)
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    model = await service.model("m1")
    assert (model.sha256, len(model.files)) == (sha256(NEW), 2)
    with refused("DOWNLOAD_CONFLICT"):
        await service.start("m1", vain)


async def test_a_start_after_an_update_in_vain_fetches_nothing(service: Service, vain: str) -> None:
    created = (await service.model("m1")).create_time
    import_file(service, "a.gguf", NEW)
    for source in (vain, ""):
        download = await service.start("m1", source, compare=True)
        assert (download.state, download.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(OLD))
        assert (download.source, download.error.message, download.source_changed) == ("a.gguf", "", True)
    with refused("DOWNLOAD_CONFLICT"):
        await service.start("m1", str(Path(vain).with_name("b.gguf")))
    assert (await service.model("m1")).create_time == created


async def test_a_repair_after_an_update_in_vain_brings_the_model_back(service: Service, vain: str) -> None:
    for each in service.stored:
        each.unlink()
    download = await service.fetched("m1")
    assert (download.state, download.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    model = await service.model("m1")
    assert (model.sha256, len(model.files), model.source) == (sha256(OLD), 2, "a.gguf")


async def test_comparisons_share_their_requests_and_are_few(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = most = running = 0
    goes_on = asyncio.Event()
    differs = SourceComparison._differs

    async def held(comparison: SourceComparison, row: TransferRow) -> bool:
        nonlocal calls, most, running
        calls, running = calls + 1, running + 1
        most = max(most, running)
        try:
            await goes_on.wait()
            return await differs(comparison, row)
        finally:
            running -= 1

    asked = 0
    has_changed = SourceComparison.has_changed

    async def counted(comparison: SourceComparison, row: TransferRow) -> bool:
        nonlocal asked
        asked += 1
        if asked == 3 * len(models):
            goes_on.set()
        return await has_changed(comparison, row)

    monkeypatch.setattr(SourceComparison, "_differs", held)
    monkeypatch.setattr(SourceComparison, "has_changed", counted)
    monkeypatch.setattr(source_comparison, "COMPARE_SECONDS", 60.0)
    source = import_file(service, "a.gguf", OLD)
    models = [f"m{number}" for number in range(MAX_COMPARISONS + 2)]
    for model in models:
        await service.fetched(model, source)
    import_file(service, "a.gguf", NEW)
    starts = [service.start(model, source, compare=True) for model in models * 3]
    assert all(found.source_changed for found in await asyncio.gather(*starts))
    assert (calls, most) == (len(models), MAX_COMPARISONS)
