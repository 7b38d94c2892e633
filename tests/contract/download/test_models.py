"""Models that were downloaded: shared objects, deletion, lists, watches and the object store below them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.objects import DirectoryStore, object_key, put
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from llamesh.v1 import model_pb2
from services.download.tables import UnownedObjectRow
from tests.contract.download.conftest import TINY, Open, OpenWith, Service, import_file, sha256
from tests.contract.model_source import ModelServer, model_bytes
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused
from tests.unit.fake_s3 import fake_s3
from tests.unit.gguf_bytes import STRING, File, array, pair


async def test_models_with_the_same_bytes_share_an_object_until_the_last_goes(service: Service) -> None:
    source = import_file(service, "a.gguf", TINY)
    for model_uuid in ("m1", "m2"):
        await service.fetched(model_uuid, source)
    assert len(service.stored) == 1
    assert (await service.delete("m1")).model_uuid == "m1"
    assert (await service.path("m2")).read_bytes() == TINY
    with refused("MODEL_NOT_FOUND"):
        await service.delete("m1")
    with refused("DOWNLOAD_NOT_FOUND"):
        await service.get("m1")
    await service.delete("m2")
    assert service.stored == []


async def test_a_deleted_model_can_be_fetched_again(service: Service) -> None:
    source = import_file(service, "a.gguf", TINY)
    for _ in range(2):
        assert (await service.fetched("m1", source)).state == pb.DOWNLOAD_STATE_SUCCEEDED
        await service.delete("m1")


async def test_an_object_without_a_record_is_removed_at_the_next_start(
    service: Service, open_service: Open, stop_member: Callable[[Member], Awaitable[None]]
) -> None:
    """What a crash between publishing and recording, or between forgetting and removing, leaves behind."""
    await service.fetched("m1", import_file(service, "a.gguf", TINY))
    await stop_member(service.member)

    async def orphan() -> AsyncIterator[bytes]:
        yield b"orphan"

    keys = [object_key("models", sha256(data), ".gguf") for data in (b"orphan", TINY)]
    await put(DirectoryStore(service.settings.home / "objects"), keys[0], orphan())
    database = open_database(service.settings, "download")
    async with database.begin() as session:
        session.add_all(UnownedObjectRow(object_key=key) for key in keys)
    await database.close()
    again = await open_service()
    async with asyncio.timeout(PATIENCE):
        while len(again.stored) > 1:
            await asyncio.sleep(0.01)
    assert (await again.path("m1")).read_bytes() == TINY


async def test_an_object_that_somebody_removed_is_said_so(service: Service) -> None:
    await service.fetched("m1", import_file(service, "a.gguf", TINY))
    service.stored[0].unlink()
    with refused("MODEL_CORRUPT"):
        await service.path("m1")


async def test_lists_come_in_pages_in_order(service: Service) -> None:
    names = [f"m{number}" for number in range(7)]
    for name in names:
        await service.fetched(name, import_file(service, f"{name}.gguf", model_bytes(name)))
    models, downloads, token = [], [], ""
    while True:
        page = await service.catalogue.ListCatalogueModels(pb.ListCatalogueModelsRequest(page_size=3, page_token=token))
        models += [model.model_uuid for model in page.models]
        token = page.next_page_token
        if not token:
            break
    while True:
        request = pb.ListDownloadsRequest(page_size=3, page_token=token)
        answer = await service.downloads.ListDownloads(request, metadata=service.caller)
        downloads += [download.model_uuid for download in answer.downloads]
        token = answer.next_page_token
        if not token:
            break
    assert (models, downloads) == (names, names[::-1])
    with refused("INVALID_PAGE_TOKEN"):
        await service.catalogue.ListCatalogueModels(pb.ListCatalogueModelsRequest(page_token="x"))


async def test_a_watch_sends_the_present_state_and_then_changes(service: Service, web: ModelServer) -> None:
    await service.fetched("m1", import_file(service, "a.gguf", TINY))
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    first = [await stream.read() for _ in range(3)]
    # What changed while the watch began may be told once more before it is said to be complete.
    while not first[-1].synced:
        first.append(await stream.read())
    assert [message.WhichOneof("change") for message in first[:2]] == ["download", "model"]
    assert {message.download.model_uuid or message.model.model_uuid for message in first[:-1]} == {"m1"}

    web.files["b.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["b.gguf"] = 2 << 20
    await service.start("m2", web.url("b.gguf"))
    seen: list[pb.WatchCatalogueResponse] = []
    async with asyncio.timeout(PATIENCE):
        while not any(message.download.bytes_done for message in seen):
            seen.append(await stream.read())
        web.go_on.set()
        while not seen[-1].removed_model_uuid:
            seen.append(await stream.read())
            if seen[-1].download.model_uuid == "m2" and seen[-1].download.state == pb.DOWNLOAD_STATE_SUCCEEDED:
                await service.delete("m1")
    stream.cancel()
    # The end of the first download may be told once more after the watch has opened.
    states = [message.download.state for message in seen if message.download.model_uuid == "m2"]
    assert states == sorted(states)
    assert states[-1] == pb.DOWNLOAD_STATE_SUCCEEDED
    assert {message.model.model_uuid for message in seen if message.HasField("model")} - {"m1"} == {"m2"}
    assert seen[-1].removed_model_uuid == "m1"


async def test_a_failed_download_is_seen_by_watchers(service: Service, web: ModelServer) -> None:
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    assert (await stream.read()).synced
    await service.start("m1", web.url("none.gguf"))
    async with asyncio.timeout(PATIENCE):
        while (message := await stream.read()).download.state != pb.DOWNLOAD_STATE_FAILED:
            pass
    stream.cancel()
    assert message.download.error.reason == "SOURCE_REFUSED"


async def test_more_transfers_than_may_run_at_once_wait_their_turn(service: Service, web: ModelServer) -> None:
    for number in range(6):
        web.files[f"{number}.gguf"] = model_bytes(str(number))
        web.hold_after[f"{number}.gguf"] = 64
        await service.start(f"m{number}", web.url(f"{number}.gguf"))
    async with asyncio.timeout(PATIENCE):
        while len(web.asked) < 3:
            await asyncio.sleep(0.01)
    assert (await service.get("m5")).state == pb.DOWNLOAD_STATE_QUEUED
    assert sorted(web.asked) == ["0.gguf", "1.gguf", "2.gguf"]
    web.go_on.set()
    for number in range(6):
        assert (await service.state(f"m{number}")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_on_s3_a_model_is_located_as_a_local_copy(
    one_settings: Settings, web: ModelServer, open_with: OpenWith
) -> None:
    web.files["a.gguf"] = TINY
    with fake_s3() as s3:
        service = await open_with(
            one_settings,
            minio_endpoint=s3.endpoint,
            minio_access_key=SecretStr("k"),
            minio_secret_key=SecretStr("s"),
        )
        await service.fetched("m1", web.url("a.gguf"))
        assert [key.partition("-")[0] for key in s3.objects] == [f"models/{sha256(TINY)}"]
        assert (await service.path("m1")).read_bytes() == TINY
        assert (await service.fetched("m2", web.url("a.gguf"), sha256="0" * 64)).error.reason == "CONTENT_MISMATCH"
        assert len(s3.objects) == 1
        await service.delete("m1")
        assert s3.objects == {}


async def test_a_store_that_refuses_its_credentials_is_said_at_once_and_mended_without_a_restart(
    one_settings: Settings, web: ModelServer, open_with: OpenWith
) -> None:
    web.files["a.gguf"] = TINY
    with fake_s3() as s3:
        s3.refuse = {"GET": (403, "SignatureDoesNotMatch"), "HEAD": (403, "SignatureDoesNotMatch")}
        service = await open_with(
            one_settings,
            minio_endpoint=s3.endpoint,
            minio_access_key=SecretStr("k"),
            minio_secret_key=SecretStr("wrong"),
        )
        download = await service.fetched("m1", web.url("a.gguf"))
        assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
        assert "SignatureDoesNotMatch" in download.error.message
        s3.refuse = {}
        assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_store_that_stays_away_is_waited_for_and_then_said(
    one_settings: Settings, web: ModelServer, open_with: OpenWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["a.gguf"] = TINY
    with fake_s3() as s3:
        s3.refuse = {"GET": (503, "SlowDown"), "HEAD": (503, "SlowDown")}
        service = await open_with(
            one_settings,
            minio_endpoint=s3.endpoint,
            minio_access_key=SecretStr("k"),
            minio_secret_key=SecretStr("s"),
        )
        await service.start("m1", web.url("a.gguf"))
        async with asyncio.timeout(PATIENCE):
            # One look at the bucket is asked four times: it has been given up when there is a fifth.
            while len(s3.requests) < 5:
                await asyncio.sleep(0.01)
        await service.state("m1", pb.DOWNLOAD_STATE_QUEUED)
        monkeypatch.setattr("services.download.transfer_run.STORE_PATIENCE_SECONDS", 0.0)
        download = await service.fetched("m2", web.url("a.gguf"))
        assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
        assert (await service.state("m1")).error.reason == "STORE_UNAVAILABLE"


async def test_a_model_says_who_fetched_it_and_what_its_header_says(service: Service) -> None:
    described = replace(
        File(), extra=(pair("general.license", STRING, "mit"), array("general.tags", STRING, ["b", "a"]))
    )
    await service.fetched("m1", import_file(service, "a.gguf", described.build()))
    model = await service.model("m1")
    assert (model.fetched_by, model.gguf.license, list(model.gguf.tags)) == ("ada", "mit", ["b", "a"])
    assert list(model.gguf.modalities) == [model_pb2.MODALITY_TEXT]


async def test_the_store_says_how_much_room_it_has(sqlite_service: Service, one_settings: Settings) -> None:
    store = await sqlite_service.downloads.GetStore(pb.GetStoreRequest(), metadata=sqlite_service.caller)
    assert store.kind == pb.STORE_KIND_DIRECTORY
    assert 0 < store.free_bytes <= store.total_bytes == shutil.disk_usage(one_settings.home).total


async def test_a_store_whose_folder_cannot_be_used_is_unavailable(sqlite_service: Service) -> None:
    objects = sqlite_service.settings.home / "objects"
    shutil.rmtree(objects, ignore_errors=True)
    objects.symlink_to(objects)
    with refused("STORE_UNAVAILABLE") as refusal:
        await sqlite_service.downloads.GetStore(pb.GetStoreRequest(), metadata=sqlite_service.caller)
    objects.unlink()
    assert "cannot use the folder of the object store" in refusal.message


async def test_a_bucket_does_not_say_how_much_room_it_has(one_settings: Settings, open_with: OpenWith) -> None:
    with fake_s3() as s3:
        keys = {"minio_access_key": SecretStr("k"), "minio_secret_key": SecretStr("s")}
        service = await open_with(one_settings, minio_endpoint=s3.endpoint, **keys)
        store = await service.downloads.GetStore(pb.GetStoreRequest(), metadata=service.caller)
    assert store == pb.Store(kind=pb.STORE_KIND_S3, cached_bytes=0)


async def test_models_are_searched_by_their_facts_and_a_deleted_model_is_not_found(service: Service) -> None:
    for model_uuid, name, tags in (("m1", "Beta", ["Chat"]), ("m2", "alpha", ["chat", "code"]), ("m3", "Gamma", [])):
        data = replace(File(), extra=(array("general.tags", STRING, tags),)).build()
        await service.fetched(model_uuid, import_file(service, f"{model_uuid}.gguf", data), name=name)

    async def found(**fields: Any) -> list[str]:
        request = pb.ListCatalogueModelsRequest(**fields)
        return [model.name for model in (await service.catalogue.ListCatalogueModels(request)).models]

    assert await found(order_by="MODEL_ORDER_NAME") == ["alpha", "Beta", "Gamma"]
    assert await found(descending=True) == ["Gamma", "alpha", "Beta"]
    assert await found(tag="CHAT", architecture="llama", quantisation="f32") == ["Beta", "alpha"]
    assert await found(query="AMM", source_kind="MODEL_SOURCE_KIND_FILE") == ["Gamma"]
    assert await found(source_kind="MODEL_SOURCE_KIND_HUB") == []
    await service.delete("m2")
    assert await found(tag="code") == []
    with refused("INVALID_FIELD"):
        await found(order_by=99)
