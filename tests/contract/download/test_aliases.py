"""A model has further names, and no two models, downloads or aliases ever share one, whoever comes first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Sequence
from typing import Any

import pytest
from grpc.aio import AioRpcError
from sqlalchemy import select

from llamesh.kit.database import Database
from llamesh.v1 import download_pb2 as pb
from llamesh.v1 import model_pb2
from services.download.aliases import MAX_ALIASES
from services.download.tables import ModelAliasRow, ModelRow
from tests.contract.download.conftest import TINY, Service, import_file
from tests.contract.model_source import ModelServer
from tests.contract.rich_status import read_refusal, refused


async def aliased(
    service: Service, model_uuid: str, add: Sequence[str] = (), remove: Sequence[str] = ()
) -> model_pb2.Model:
    request = pb.ChangeCatalogueModelAliasesRequest(model_uuid=model_uuid, add=add, remove=remove)
    return await service.catalogue.ChangeCatalogueModelAliases(request)


@pytest.fixture
async def two(service: Service) -> Service:
    """A service with the models m1, called one.gguf, and m2, called two.gguf."""
    for uuid, name in (("m1", "one.gguf"), ("m2", "two.gguf")):
        await service.fetched(uuid, import_file(service, name, TINY))
    return service


async def test_aliases_are_given_and_taken_away_in_one_step_and_can_be_repeated(two: Service) -> None:
    for _ in range(2):
        assert list((await aliased(two, "m1", ["words", "qwen:latest"])).aliases) == ["words", "qwen:latest"]
    changed = await aliased(two, "m1", add=["org/words@1"], remove=["words", "none"])
    assert list(changed.aliases) == ["qwen:latest", "org/words@1"]
    assert await two.model("m1") == changed
    # What was taken away is free.
    assert list((await aliased(two, "m2", ["words"])).aliases) == ["words"]
    with refused("MODEL_NOT_FOUND"):
        await aliased(two, "m3", ["x"])


@pytest.mark.parametrize("name", ["m1", "m2", "one.gguf", "two.gguf", "taken"])
async def test_an_alias_is_no_name_id_or_alias_of_a_model(two: Service, name: str) -> None:
    await aliased(two, "m2", ["taken"])
    with refused("MODEL_NAME_TAKEN") as refusal:
        await aliased(two, "m1", ["free", name])
    assert refusal.metadata["name"] == name
    assert refusal.metadata.get("alias", "") == ("taken" if name == "taken" else "")
    assert list((await two.model("m1")).aliases) == []


@pytest.mark.parametrize("name", ["M2", "TWO.gguf", "Taken"])
async def test_an_alias_differs_from_the_names_of_other_models_in_more_than_case(two: Service, name: str) -> None:
    await aliased(two, "m2", ["taken"])
    with refused("MODEL_NAME_TAKEN") as refusal:
        await aliased(two, "m1", [name])
    assert refusal.metadata["modelUuid"] == "m2"
    assert refusal.metadata.get("alias", "") == ("taken" if name == "Taken" else "")
    # Of the same model it names nothing else.
    assert name in (await aliased(two, "m2", [name])).aliases
    path = import_file(two, "three.gguf", TINY)
    for uuid, fields in (("m3", {"name": "tAKEN"}), ("tAKEN", {})):
        with refused("MODEL_NAME_TAKEN") as refusal:
            await two.start(uuid, path, **fields)
        assert refusal.metadata["alias"] == "taken"


@pytest.mark.parametrize("name", ["", "-x", "a b", "x" * 129, "\u00e9"])
async def test_an_alias_has_the_form_of_a_name(two: Service, name: str) -> None:
    with refused("INVALID_FIELD"):
        await aliased(two, "m1", [name])


ADDRESSES = ("hf:ada/tiny", "HF:ada/tiny:Q4_K_M", "https://a.b/c.gguf", "s3:a/b", "quant:x", "hf.co/ada/tiny", "file:a")
PATHS = ("a/../b", "a/./b", "a//b", "a/", "models/a.gguf")


@pytest.mark.parametrize("name", [*ADDRESSES, *PATHS])
async def test_no_name_looks_like_an_address_or_a_path(two: Service, name: str) -> None:
    """Commands that take a model take these too, and would mean another one."""
    with refused("INVALID_FIELD") as refusal:
        await aliased(two, "m1", ["words", name])
    assert "looks like an address or a path" in refusal.message
    assert list((await two.model("m1")).aliases) == []
    with refused("INVALID_FIELD") as refusal:
        await two.start("m3", import_file(two, "three.gguf", TINY), name=name)
    assert refusal.fields == ["name"]


async def test_a_source_gives_no_name_that_looks_like_an_address(two: Service) -> None:
    assert (await two.fetched("m3", import_file(two, "hf:three.gguf", TINY))).name == "m3"


async def test_a_model_has_a_bounded_number_of_aliases(two: Service) -> None:
    names = [f"a{number}" for number in range(MAX_ALIASES)]
    await aliased(two, "m1", names[:-1])
    with refused("INVALID_FIELD") as refusal:
        await aliased(two, "m1", ["b", "c"])
    assert f"at most {MAX_ALIASES}" in refusal.message
    await aliased(two, "m1", names)
    assert list((await aliased(two, "m1", ["b"], [names[0]])).aliases) == [*names[1:], "b"]


async def test_no_download_gets_a_name_that_is_an_alias(two: Service, web: ModelServer) -> None:
    await aliased(two, "m1", ["words", "late.gguf"])
    path = import_file(two, "three.gguf", TINY)
    for uuid, fields, field in (("m3", {"name": "words"}, "name"), ("words", {}, "model_uuid")):
        with refused("MODEL_NAME_TAKEN") as refusal:
            await two.start(uuid, path, **fields)
        assert refusal.fields == [field]
    with refused("DOWNLOAD_NOT_FOUND"):
        await two.get("m3")
    # Here the name is the file's.
    web.files["late.gguf"] = TINY
    with refused("MODEL_NAME_TAKEN"):
        await two.start("m3", web.url("late.gguf"))


async def test_a_download_that_has_not_ended_keeps_its_name(service: Service, web: ModelServer) -> None:
    await service.fetched("m1", import_file(service, "one.gguf", TINY))
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 64
    await service.start("m2", web.url("a.gguf"), name="words")
    for name in ("words", "m2"):
        with refused("MODEL_NAME_TAKEN"):
            await aliased(service, "m1", [name])
    await service.cancel("m2")


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_a_download_that_has_ended_can_be_tried_again_under_its_name(
    service: Service, web: ModelServer, end: str
) -> None:
    """An alias took its name, and then each retry was refused."""
    await service.fetched("m1", import_file(service, "one.gguf", TINY))
    if end == "cancelled":
        web.files["a.gguf"] = TINY
        web.hold_after["a.gguf"] = 64
    await service.start("m2", web.url("a.gguf"), name="words")
    await (service.cancel("m2") if end == "cancelled" else service.state("m2"))
    for name in ("words", "m2", "Words"):
        with refused("MODEL_NAME_TAKEN") as refusal:
            await aliased(service, "m1", [name])
        assert "`llamesh downloads rm m2` removes its record" in refusal.message
    web.files["a.gguf"] = TINY
    web.go_on.set()
    assert (await service.fetched("m2")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_the_name_of_a_removed_record_is_free(service: Service, web: ModelServer) -> None:
    await service.fetched("m1", import_file(service, "one.gguf", TINY))
    await service.fetched("m2", web.url("none.gguf"), name="words")
    await service.downloads.DeleteDownload(pb.DeleteDownloadRequest(model_uuid="m2"), metadata=service.caller)
    assert list((await aliased(service, "m1", ["words"])).aliases) == ["words"]


async def test_aliases_stay_when_a_model_is_fetched_again_and_go_with_it(two: Service, settings: Any) -> None:
    await aliased(two, "m1", ["words"])
    two.stored[0].unlink()
    await two.fetched("m1")
    assert list((await two.model("m1")).aliases) == ["words"]
    await two.delete("m1")
    assert list((await aliased(two, "m2", ["words"])).aliases) == ["words"]


async def test_models_are_found_by_a_part_of_an_alias(two: Service) -> None:
    await aliased(two, "m2", ["Qwen:latest"])

    async def found(query: str) -> list[str]:
        request = pb.ListCatalogueModelsRequest(query=query)
        return [model.model_uuid for model in (await two.catalogue.ListCatalogueModels(request)).models]

    assert await found("qwen") == ["m2"]
    assert await found("gguf") == ["m1", "m2"]


async def test_watchers_are_told_of_aliases(two: Service) -> None:
    stream = two.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    while not (await stream.read()).synced:
        pass
    await aliased(two, "m1", ["words"])
    change = await stream.read()
    assert list(change.model.aliases) == ["words"]
    stream.cancel()


async def outcome(call: Awaitable[Any]) -> str:
    """The reason of a refusal; empty if there is none."""
    try:
        await call
    except AioRpcError as error:
        return read_refusal(error).reason
    return ""


@pytest.mark.parametrize("seed", range(3))
async def test_of_many_who_want_one_name_at_once_one_gets_it(two: Service, journal: Database, seed: int) -> None:
    """Aliases of two models, and downloads of that name."""
    chance = random.Random(seed)
    for turn in range(5):
        name = f"name{turn}"
        path = import_file(two, f"file{turn}.gguf", TINY)
        calls: list[Awaitable[Any]] = [
            aliased(two, "m1", [name]),
            aliased(two, "m2", [name]),
            two.start(f"d{turn}", path, name=name),
            two.start(name, path),
        ]
        chance.shuffle(calls)
        outcomes = await asyncio.gather(*map(outcome, calls))
        assert set(outcomes) <= {"", "MODEL_NAME_TAKEN"}
        async with journal.read() as session:
            owners = (await session.scalars(select(ModelAliasRow).where(ModelAliasRow.alias == name))).all()
            repeated = [row for row in (await session.scalars(select(ModelRow))).all() if name in row.aliases]
        downloads = await two.downloads.ListDownloads(pb.ListDownloadsRequest(), metadata=two.caller)
        named = [item for item in downloads.downloads if name in (item.name, item.model_uuid)]
        assert [row.model_uuid for row in owners] == [row.model_uuid for row in repeated]
        # Two downloads may share a name, as two models may; no alias is one of theirs.
        assert (len(owners), len(named)) in {(1, 0), (0, 1), (0, 2)}
