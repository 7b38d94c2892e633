"""Models that an earlier release fetched get the facts of this one: from their header, once, and the rest of the record stays."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from sqlalchemy import update

from llamesh.kit.database import Database
from llamesh.kit.objects import DirectoryStore
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from services.download.old_headers import lacks_facts
from services.download.tables import ModelRow, ModelTagRow
from tests.contract.download.conftest import TINY, Open, Service, import_file
from tests.contract.download.journal import until
from tests.unit.gguf_bytes import STRING, File, array, pair

DATA = replace(
    File(), extra=(pair("general.license", STRING, "mit"), array("general.tags", STRING, ["Chat", "code"]))
).build()


@pytest.fixture
async def old(service: Service, journal: Database, stop_member: Callable[[Member], Awaitable[None]]) -> None:
    """Two models as an earlier release recorded them; the object of the first is lost."""
    for uuid in ("lost", "m1"):
        await service.fetched(uuid, import_file(service, f"{uuid}.gguf", DATA if uuid == "m1" else TINY))
    lost = await service.path("lost")
    await stop_member(service.member)
    lost.unlink()
    async with journal.begin() as session:
        await session.execute(
            update(ModelRow).values(gguf={"version": 3, "architecture": "llama"}, architecture="", quantisation="")
        )
        await session.execute(ModelTagRow.__table__.delete())


async def test_a_header_is_read_again_and_the_model_is_found_by_it(old: None, open_service: Open) -> None:
    service = await open_service()

    async def complete() -> bool:
        return bool((await service.model("m1")).gguf.license)

    await until(complete)
    model = await service.model("m1")
    assert (model.gguf.license, list(model.gguf.tags), model.fetched_by) == ("mit", ["Chat", "code"], "ada")
    request = pb.ListCatalogueModelsRequest(tag="chat", architecture="llama", quantisation="f32")
    found = await service.catalogue.ListCatalogueModels(request)
    assert [item.model_uuid for item in found.models] == ["m1"]
    # A model whose object is lost stays as it was.
    assert (await service.model("lost")).gguf.architecture == "llama"


async def test_what_a_record_knows_stays_when_its_header_is_read_again(
    old: None, journal: Database, open_service: Open
) -> None:
    """A fact of a model in parts may be that of all parts; the header is that of the first."""
    known = {"version": 3, "architecture": "llama", "tensor_count": 4711}
    async with journal.begin() as session:
        await session.execute(update(ModelRow).values(gguf=known))
    service = await open_service()

    async def complete() -> bool:
        return bool((await service.model("m1")).gguf.license)

    await until(complete)
    assert (await service.model("m1")).gguf.tensor_count == 4711


async def test_a_complete_record_is_not_read_again(
    service: Service,
    open_service: Open,
    stop_member: Callable[[Member], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await service.fetched("m1", import_file(service, "m1.gguf", DATA))
    await stop_member(service.member)
    read: list[object] = []
    monkeypatch.setattr(DirectoryStore, "read", lambda *arguments, **_: read.append(arguments))
    again = await open_service()
    await again.fetched("m2", import_file(again, "m2.gguf", DATA))
    assert read == []


def test_which_records_lack_facts() -> None:
    assert lacks_facts({"version": 3})
    from llamesh.v1 import model_pb2

    assert not lacks_facts(dict.fromkeys(model_pb2.GgufMetadata.DESCRIPTOR.fields_by_name))
