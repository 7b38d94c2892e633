"""The downloads that have not ended are limited, for each user and in all, and so is what a pass of the worker reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from pydantic import SecretStr
from sqlalchemy import event, insert

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.v1 import download_pb2 as pb
from services.download import start_limits
from services.download.start_limits import MAX_UNENDED
from services.download.tables import TransferRow, TransferState
from services.download.transfers import Transfers
from tests.contract.conftest import AsCaller
from tests.contract.download.conftest import OpenWith, Service
from tests.contract.model_source import ModelServer, model_bytes

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 3 * MAX_UNENDED


@pytest.fixture
async def service(one_settings: Settings, open_with: OpenWith, web: ModelServer) -> Service:
    """Its source holds each answer back."""
    names = [f"m{number}.gguf" for number in range(1, 5)]
    web.files |= {name: model_bytes(name, 1 << 20) for name in names}
    web.hold_after = dict.fromkeys(names, 1 << 19)
    return await open_with(one_settings)


async def refusal(service: Service, model_uuid: str, source: str = "") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.start(model_uuid, source)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    return caught.value.details() or ""


async def test_one_user_has_a_limited_number_of_downloads_that_have_not_ended(
    service: Service, web: ModelServer, as_caller: AsCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_limits, "MAX_UNENDED_OF_USER", 2)
    for name in ("m1", "m2"):
        await service.start(name, web.url(f"{name}.gguf"))
    assert "2 of your downloads have not ended" in await refusal(service, "m3", web.url("m3.gguf"))
    await service.pause("m1")
    assert "2 of your downloads have not ended" in await refusal(service, "m3", web.url("m3.gguf"))
    assert (await service.start("m1", web.url("m1.gguf"))).state == pb.DOWNLOAD_STATE_QUEUED, "it has started before"
    ada, service.caller = service.caller, as_caller("bob", "manage")
    await service.start("m3", web.url("m3.gguf"))
    service.caller = ada
    await service.cancel("m2")
    await service.start("m4", web.url("m4.gguf"))
    assert "2 of your downloads" in await refusal(service, "m2")


async def test_all_users_together_have_a_limited_number(
    service: Service, web: ModelServer, as_caller: AsCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_limits, "MAX_UNENDED", 1)
    await service.start("m1", web.url("m1.gguf"))
    service.caller = as_caller("bob", "manage")
    assert "1 downloads of all users run or wait" in await refusal(service, "m2", web.url("m2.gguf"))
    await service.pause("m1")
    await service.start("m2", web.url("m2.gguf"))


async def test_one_user_keeps_a_limited_number_of_records_without_a_model(
    service: Service, web: ModelServer, as_caller: AsCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_limits, "MAX_ENDED_OF_USER", 2)
    web.files["m.gguf"] = model_bytes()
    await service.fetched("m", web.url("m.gguf"))
    assert (await service.fetched("m", f"{web.url('none.gguf')}", update=True)).state == pb.DOWNLOAD_STATE_FAILED
    ada, service.caller = service.caller, as_caller("bob", "manage")
    await service.fetched("b", web.url("none.gguf"))
    service.caller = ada
    watch = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    async for change in watch:
        if change.synced:
            break
    for number in range(4):
        await service.fetched(f"f{number}", web.url("none.gguf"))
    await service.start("m1", web.url("m1.gguf"))
    listed = await service.downloads.ListDownloads(pb.ListDownloadsRequest(), metadata=service.caller)
    assert {each.model_uuid for each in listed.downloads} == {"m", "b", "f2", "f3", "m1"}
    removed: list[str] = []
    async for change in watch:
        if change.removed_download_uuid:
            removed.append(change.removed_download_uuid)
        if len(removed) == 2:
            break
    assert removed == ["f0", "f1"]
    watch.cancel()


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(
    request: pytest.FixtureRequest, postgres: Callable[[], str], tmp_path: Path
) -> AsyncIterator[Database]:
    url = SecretStr(postgres() if request.param == "postgresql" else "")
    opened = open_database(Settings(home=tmp_path, database_url=url), "download")
    await opened.migrate("services.download")
    yield opened
    await opened.close()


async def test_a_pass_reads_a_bounded_number_of_rows_and_those_that_run_first(database: Database) -> None:
    texts = ("name", "source", "shown_source", "expected_sha256", "sha256", "error_reason", "error_message")
    numbers = dict.fromkeys(("attempt", "resume_count", "bytes_done", "bytes_total"), 0)
    rows = [
        dict.fromkeys(texts, "")
        | numbers
        | {"model_uuid": f"m{number}", "state": TransferState.QUEUED, "create_time": NOW + timedelta(seconds=number)}
        | {"update_time": NOW, "requested_by": "ada"}
        for number in range(ROWS)
    ]
    rows[-1] |= {"state": TransferState.RUNNING, "claimed_by": "me"}
    async with database.begin() as session:
        for start in range(0, ROWS, 500):
            await session.execute(insert(TransferRow), rows[start : start + 500])
    loaded = 0

    def count(*_: object) -> None:
        nonlocal loaded
        loaded += 1

    event.listen(TransferRow, "load", count)
    try:
        found = await Transfers(database, lambda: NOW, "me").workable()
    finally:
        event.remove(TransferRow, "load", count)
    assert loaded == len(found) == MAX_UNENDED
    assert [row.model_uuid for row in found] == [*(f"m{number}" for number in range(MAX_UNENDED - 1)), f"m{ROWS - 1}"]
