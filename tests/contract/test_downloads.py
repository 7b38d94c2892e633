"""Downloads over a real channel: bytes come in whole, verified and once, or the reason says why not and nothing is left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.objects import DirectoryStore, object_key, put
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub, DownloadServiceStub
from services.download.service import run
from services.download.tables import UnownedObjectRow
from tests.contract.conftest import AsCaller, Connect, StartMain, StartStandings
from tests.contract.model_source import ModelServer, model_bytes, model_server
from tests.contract.rich_status import refused
from tests.unit.fake_s3 import fake_s3
from tests.unit.gguf_bytes import STRING, U32, File, pair

TINY = model_bytes()
ENDED = {pb.DOWNLOAD_STATE_SUCCEEDED, pb.DOWNLOAD_STATE_FAILED, pb.DOWNLOAD_STATE_CANCELLED}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
async def web() -> AsyncIterator[ModelServer]:
    async with model_server() as server:
        yield server


@dataclass
class Service:
    """The download service as its callers see it."""

    settings: Settings
    member: Member
    downloads: DownloadServiceStub
    catalogue: CatalogueServiceStub
    caller: list[tuple[str, str]]

    async def start(self, model_uuid: str, source: str = "", **fields: str) -> pb.Download:
        request = pb.StartDownloadRequest(model_uuid=model_uuid, source=source, **fields)
        return await self.downloads.StartDownload(request, metadata=self.caller)

    async def get(self, model_uuid: str) -> pb.Download:
        return await self.downloads.GetDownload(pb.GetDownloadRequest(model_uuid=model_uuid), metadata=self.caller)

    async def cancel(self, model_uuid: str) -> pb.Download:
        return await self.downloads.CancelDownload(
            pb.CancelDownloadRequest(model_uuid=model_uuid), metadata=self.caller
        )

    async def state(self, model_uuid: str, *states: int) -> pb.Download:
        async with asyncio.timeout(20):
            while True:
                found = await self.get(model_uuid)
                if found.state in (states or ENDED):
                    return found
                await asyncio.sleep(0.01)

    async def fetched(self, model_uuid: str, source: str = "", **fields: str) -> pb.Download:
        """Start it and wait for its end."""
        await self.start(model_uuid, source, **fields)
        return await self.state(model_uuid)

    async def model(self, model_uuid: str) -> Any:
        return await self.catalogue.GetCatalogueModel(pb.GetCatalogueModelRequest(model_uuid=model_uuid))

    async def delete(self, model_uuid: str) -> Any:
        return await self.catalogue.DeleteCatalogueModel(pb.DeleteCatalogueModelRequest(model_uuid=model_uuid))

    async def path(self, model_uuid: str) -> Path:
        return Path((await self.catalogue.LocateModel(pb.LocateModelRequest(model_uuid=model_uuid))).path)

    @property
    def stored(self) -> list[Path]:
        """Every file in the store, published or not."""
        return [path for path in (self.settings.home / "objects").rglob("*") if path.is_file()]

    async def no_files(self) -> None:
        async with asyncio.timeout(10):
            while self.stored:
                await asyncio.sleep(0.01)


Open = Callable[[], Awaitable[Service]]
OpenWith = Callable[..., Awaitable[Service]]


@pytest.fixture
def open_with(
    web: ModelServer, start_main: StartMain, start_standings: StartStandings, connect: Connect, as_caller: AsCaller
) -> OpenWith:
    """Starts the service with settings of the test's."""

    async def start(settings: Settings, **changes: object) -> Service:
        mine = settings.model_copy(update={"http_source_hosts": (web.host,), **changes})
        await start_standings(mine)
        member = await start_main(mine, "download", run)
        channel = connect(mine, "download")
        return Service(
            mine, member, DownloadServiceStub(channel), CatalogueServiceStub(channel), as_caller("ada", "manage")
        )

    return start


@pytest.fixture
def open_service(settings: Settings, open_with: OpenWith) -> Open:
    """Starts the service, also again on the same data."""
    return lambda: open_with(settings)


@pytest.fixture
async def service(open_service: Open) -> Service:
    return await open_service()


@pytest.fixture
async def sqlite_service(one_settings: Settings, open_with: OpenWith) -> Service:
    """For tests in which the database plays no part."""
    return await open_with(one_settings)


def import_file(service: Service, name: str, data: bytes) -> str:
    folder = service.settings.home / "import"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return str(folder / name)


async def test_a_file_becomes_a_model(service: Service) -> None:
    path = import_file(service, "My Model.gguf", TINY)
    download = await service.fetched("m1", path)
    assert (download.state, download.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(TINY))
    assert (download.bytes_done, download.bytes_total) == (len(TINY), len(TINY))
    model = await service.model("m1")
    assert (model.model_uuid, model.name, model.size_bytes) == ("m1", "My-Model.gguf", len(TINY))
    assert (model.sha256, model.source) == (sha256(TINY), Path(path).name)
    assert (model.gguf.architecture, model.gguf.layer_count, model.gguf.kv_head_count) == ("llama", 2, 2)
    assert (await service.path("m1")).read_bytes() == TINY


async def test_a_url_becomes_a_model_under_the_name_asked_for(service: Service, web: ModelServer) -> None:
    web.files["dir/a.gguf"] = TINY
    download = await service.fetched(
        "m1", web.url("dir/a.gguf?sig=secret"), name="Qwen3:0.6b", sha256=sha256(TINY).upper()
    )
    assert (download.state, download.name) == (pb.DOWNLOAD_STATE_SUCCEEDED, "Qwen3:0.6b")
    assert download.source == web.url("dir/a.gguf")
    assert (await service.model("m1")).name == "Qwen3:0.6b"


async def test_a_wrong_digest_fails_and_leaves_nothing(service: Service) -> None:
    download = await service.fetched("m1", import_file(service, "a.gguf", TINY), sha256="0" * 64)
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "CONTENT_MISMATCH")
    assert sha256(TINY) in download.error.message
    assert download.error.remedy
    assert service.stored == []
    with refused("MODEL_NOT_FOUND"):
        await service.model("m1")
    with refused("MODEL_NOT_FOUND"):
        await service.path("m1")


NOT_SERVED = {
    "an HTML page": (b"<!DOCTYPE html><html>Sign in</html>" + bytes(2000), "not a GGUF file"),
    "an empty file": (b"", "the file ends here"),
    "three bytes": (b"GGU", "the file ends here"),
    "the first half": (TINY[: len(TINY) // 2], "the file ends here"),
    "one byte short": (TINY[:-1], "truncated: 1 bytes"),
    "a hostile count": (TINY[:8] + b"\xff" * 8 + TINY[16:], "tensors, at most"),
    "an adapter": (File().adding(pair("general.type", STRING, "adapter")), "no model that could be served"),
    "a part of a split model": (File().adding(pair("split.count", U32, 3)), "part 1 of a model split in 3"),
}


@pytest.mark.parametrize("case", NOT_SERVED)
async def test_what_llama_cpp_cannot_be_given_is_refused(sqlite_service: Service, case: str) -> None:
    data, problem = NOT_SERVED[case]
    download = await sqlite_service.fetched("m1", import_file(sqlite_service, "a.gguf", data))
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")
    assert problem in download.error.message
    assert sqlite_service.stored == []


async def test_a_wrong_file_is_given_up_at_its_first_bytes(sqlite_service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = b"PK\x03\x04" + bytes(5 << 20)
    web.hold_after["a.gguf"] = 1 << 20
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert download.error.reason == "MODEL_INVALID"
    assert not web.go_on.is_set()


async def test_a_body_that_ends_early_is_a_mismatch(sqlite_service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    web.promised["a.gguf"] = len(TINY) + 1
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert (download.error.reason, sqlite_service.stored) == ("CONTENT_MISMATCH", [])


async def test_a_source_that_vanishes_ends_the_download(service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 100
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    web.break_off = True
    web.go_on.set()
    download = await service.state("m1")
    assert (download.error.reason, service.stored) == ("CONTENT_MISMATCH", [])


async def test_a_source_that_is_not_there_is_said_so_and_can_be_tried_again(service: Service, web: ModelServer) -> None:
    download = await service.fetched("m1", web.url("a.gguf"))
    assert (download.error.reason, download.state) == ("SOURCE_UNAVAILABLE", pb.DOWNLOAD_STATE_FAILED)
    assert "404" in download.error.message
    web.files["a.gguf"] = TINY
    again = await service.fetched("m1")
    assert (again.state, again.error.reason) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")


@pytest.mark.parametrize("failures", [[(503, "")], [(429, "0"), (502, ""), (504, "0")], [(0, "")], [(0, "")] * 5])
async def test_a_source_that_is_busy_or_breaks_off_is_asked_again(
    service: Service, web: ModelServer, failures: list[tuple[int, str]]
) -> None:
    web.files["a.gguf"] = TINY
    web.busy["a.gguf"] = list(failures)
    download = await service.fetched("m1", web.url("a.gguf"))
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
    assert len(web.asked) == len(failures) + 1


async def test_a_source_that_stays_busy_is_given_up(service: Service, web: ModelServer) -> None:
    web.busy["a.gguf"] = [(503, "")] * 100
    download = await service.fetched("m1", web.url("a.gguf"))
    assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "SOURCE_UNAVAILABLE")
    assert "503" in download.error.message
    assert "given up after 6 tries" in download.error.message
    assert len(web.asked) == 6
    # Asked for anew it begins to count anew.
    web.files["a.gguf"], web.busy["a.gguf"] = TINY, [(503, "")] * 5
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_source_says_when_it_is_asked_again_and_the_download_shows_it(
    service: Service, web: ModelServer
) -> None:
    web.files["a.gguf"], web.files["b.gguf"] = TINY, TINY
    web.busy["a.gguf"] = [(503, "300")]
    await service.start("m1", web.url("a.gguf"))
    async with asyncio.timeout(20):
        while not (waiting := await service.get("m1")).error.reason:
            await asyncio.sleep(0.01)
    assert (waiting.state, waiting.error.reason) == (pb.DOWNLOAD_STATE_QUEUED, "SOURCE_UNAVAILABLE")
    assert "tries again in 300 s, 1 of 6 tries failed" in waiting.error.message
    # It holds up no other, and can be cancelled.
    assert (await service.fetched("m2", web.url("b.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert web.asked == ["a.gguf", "b.gguf"]
    assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_CANCELLED


async def test_a_source_that_wants_us_back_much_later_is_given_up(sqlite_service: Service, web: ModelServer) -> None:
    web.busy["a.gguf"] = [(503, "3600")]
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert (download.state, len(web.asked)) == (pb.DOWNLOAD_STATE_FAILED, 1)


async def test_a_name_that_is_not_utf_8_is_shown_with_replacements(sqlite_service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = File().replacing("general.name", pair("general.name", STRING, b"Caf\xe9 \xff 7B"))
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert download.state == pb.DOWNLOAD_STATE_SUCCEEDED, download.error
    assert "Caf\ufffd \ufffd 7B" in str((await sqlite_service.model("m1")).ListFields())


async def test_a_file_that_does_not_fit_is_refused_with_the_numbers(sqlite_service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    web.promised["a.gguf"] = (2 << 40) - 1
    download = await sqlite_service.fetched("m1", web.url("a.gguf"))
    assert download.error.reason == "STORE_UNAVAILABLE"
    assert f"needs {(2 << 40) - 1} bytes" in download.error.message


REFUSED = [
    ("http://models.example/a.gguf", "scheme"),
    ("ftp://models.example/a.gguf", "scheme"),
    ("a.gguf", "scheme"),
    ("https://user:hunter2@models.example/a.gguf", "credentials"),
    ("/etc/passwd", "folder"),
    ("file:///proc/self/environ", "folder"),
]


@pytest.mark.parametrize(("source", "rule"), REFUSED)
async def test_sources_that_may_not_be_used_are_refused_at_once(
    sqlite_service: Service, source: str, rule: str
) -> None:
    with refused("SOURCE_REFUSED") as refusal:
        await sqlite_service.start("m1", source)
    assert refusal.metadata["rule"] == rule
    assert "hunter2" not in str(refusal)
    with refused("DOWNLOAD_NOT_FOUND"):
        await sqlite_service.get("m1")


async def test_a_private_address_is_refused_when_it_is_looked_up(sqlite_service: Service) -> None:
    download = await sqlite_service.fetched("m1", "https://localhost/a.gguf")
    assert download.error.reason == "SOURCE_REFUSED"


async def test_without_a_source_the_missing_quant_service_is_named(sqlite_service: Service) -> None:
    with refused("QUANT_NOT_CONFIGURED"):
        await sqlite_service.start("m1")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"model_uuid": ""}, "model_uuid"),
        ({"model_uuid": "../x"}, "model_uuid"),
        ({"model_uuid": "a" * 129}, "model_uuid"),
        ({"model_uuid": "m1", "sha256": "abc"}, "sha256"),
        ({"model_uuid": "m1", "name": "a b"}, "name"),
        ({"model_uuid": "m1", "source": "https://" + "a" * 2048}, "source"),
    ],
)
async def test_malformed_requests_name_the_field(sqlite_service: Service, fields: dict[str, str], wrong: str) -> None:
    with refused("INVALID_FIELD") as refusal:
        await sqlite_service.start(**fields)
    assert refusal.fields == [wrong]


async def test_a_token_without_the_scope_is_refused(sqlite_service: Service, as_caller: AsCaller) -> None:
    sqlite_service.caller = as_caller("eve", "infer:*")
    with refused("SCOPE_MISSING"):
        await sqlite_service.start("m1", "/x")
    sqlite_service.caller = []
    with refused("UNAUTHENTICATED"):
        await sqlite_service.get("m1")


async def test_many_who_ask_cause_one_download(service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 64
    answers = await asyncio.gather(*(service.start("m1", web.url("a.gguf")) for _ in range(20)))
    await web.holding.wait()
    assert len({answer.create_time.ToNanoseconds() for answer in answers}) == 1
    web.go_on.set()
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    again = await service.start("m1", web.url("a.gguf"))
    assert (again.state, web.asked) == (pb.DOWNLOAD_STATE_SUCCEEDED, ["a.gguf"])


async def test_another_source_or_digest_is_a_conflict_while_it_runs_and_after(
    service: Service, web: ModelServer
) -> None:
    web.files["a.gguf"] = TINY
    web.hold_after["a.gguf"] = 64
    await service.start("m1", web.url("a.gguf?sig=secret"))
    await web.holding.wait()
    with refused("DOWNLOAD_CONFLICT") as refusal:
        await service.start("m1", web.url("b.gguf"))
    assert refusal.metadata == {"modelUuid": "m1", "source": web.url("a.gguf")}
    web.go_on.set()
    await service.state("m1")
    for conflict in ({"source": web.url("b.gguf")}, {"sha256": "1" * 64}):
        with refused("DOWNLOAD_CONFLICT"):
            await service.start("m1", **conflict)
    await service.start("m1", sha256=sha256(TINY))


async def test_after_a_failure_another_source_may_be_named(service: Service, web: ModelServer) -> None:
    await service.fetched("m1", web.url("wrong.gguf"), sha256="0" * 64, name="Wrong")
    web.files["right.gguf"] = TINY
    download = await service.fetched("m1", web.url("right.gguf"))
    assert (download.state, download.name) == (pb.DOWNLOAD_STATE_SUCCEEDED, "right.gguf")


async def test_progress_is_seen_while_bytes_come(service: Service, web: ModelServer) -> None:
    big = model_bytes("big", 3 << 20)
    web.files["a.gguf"] = big
    web.hold_after["a.gguf"] = 2 << 20
    started = await service.start("m1", web.url("a.gguf"))
    assert started.state == pb.DOWNLOAD_STATE_QUEUED
    async with asyncio.timeout(10):
        while (running := await service.get("m1")).bytes_done < 2 << 20:
            await asyncio.sleep(0.01)
    assert (running.state, running.bytes_done, running.bytes_total) == (pb.DOWNLOAD_STATE_RUNNING, 2 << 20, len(big))
    assert running.bytes_per_second > 0
    with refused("MODEL_NOT_READY"):
        await service.model("m1")
    with refused("MODEL_NOT_READY"):
        await service.delete("m1")
    web.go_on.set()
    assert (await service.state("m1")).bytes_per_second == 0


async def test_a_cancelled_download_leaves_nothing_and_can_be_started_again(service: Service, web: ModelServer) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    for _ in range(2):
        assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_CANCELLED
    await service.no_files()
    with refused("MODEL_NOT_FOUND"):
        await service.model("m1")
    web.go_on.set()
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    with refused("DOWNLOAD_NOT_FOUND"):
        await service.cancel("m2")


async def test_a_restart_in_the_middle_starts_the_transfer_again(
    service: Service, web: ModelServer, open_service: Open, stop_member: Callable[[Member], Awaitable[None]]
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    await service.start("m1", web.url("a.gguf"), sha256=sha256(web.files["a.gguf"]))
    await web.holding.wait()
    await stop_member(service.member)
    await service.no_files()
    web.go_on.set()
    again = await open_service()
    download = await again.state("m1")
    assert (download.state, download.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, 1)
    assert web.asked == ["a.gguf", "a.gguf"]
    assert [path.name.partition("-")[0] for path in again.stored] == [download.sha256]


async def test_a_killed_process_leaves_a_transfer_that_the_next_one_finishes(
    settings: Settings, web: ModelServer, connect: Connect, as_caller: AsCaller, start_standings: StartStandings
) -> None:
    await start_standings(settings)
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    environment = {
        **os.environ,
        "LLAMESH_HOME": str(settings.home),
        "LLAMESH_HTTP_SOURCE_HOSTS": web.host,
        **({"DATABASE_URL": settings.database_url.get_secret_value()} if settings.database_url else {}),
    }

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, "-m", "services.download", env=environment)

    caller = as_caller("ada", "manage")
    request = pb.StartDownloadRequest(model_uuid="m1", source=web.url("a.gguf"))
    patient: dict[str, Any] = {"metadata": caller, "wait_for_ready": True, "timeout": 40}
    process = await start()
    try:
        await DownloadServiceStub(connect(settings, "download")).StartDownload(request, **patient)
        async with asyncio.timeout(40):
            while not any(path.stat().st_size for path in (settings.home / "objects").rglob("*.part")):
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        assert [path.suffix for path in (settings.home / "objects").rglob("*") if path.is_file()] == [".part"]
        web.go_on.set()
        process = await start()
        downloads = DownloadServiceStub(connect(settings, "download"))
        async with asyncio.timeout(40):
            while True:
                found = await downloads.GetDownload(pb.GetDownloadRequest(model_uuid="m1"), **patient)
                if found.state in ENDED:
                    break
                await asyncio.sleep(0.02)
        assert (found.state, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, 1)
        assert [path.suffix for path in (settings.home / "objects").rglob("*") if path.is_file()] == [".gguf"]
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 40) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


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
    async with asyncio.timeout(10):
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


async def test_a_watch_begins_with_what_is_there_and_goes_on_with_what_changes(
    service: Service, web: ModelServer
) -> None:
    await service.fetched("m1", import_file(service, "a.gguf", TINY))
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    first = [await stream.read() for _ in range(3)]
    assert [message.WhichOneof("change") for message in first] == ["download", "model", "synced"]
    assert (first[0].download.model_uuid, first[1].model.model_uuid) == ("m1", "m1")

    web.files["b.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["b.gguf"] = 2 << 20
    await service.start("m2", web.url("b.gguf"))
    seen: list[pb.WatchCatalogueResponse] = []
    async with asyncio.timeout(20):
        while not any(message.download.bytes_done for message in seen):
            seen.append(await stream.read())
        web.go_on.set()
        while not seen[-1].removed_model_uuid:
            seen.append(await stream.read())
            if seen[-1].download.state == pb.DOWNLOAD_STATE_SUCCEEDED:
                await service.delete("m1")
    stream.cancel()
    states = [message.download.state for message in seen if message.HasField("download")]
    assert states == sorted(states)
    assert states[-1] == pb.DOWNLOAD_STATE_SUCCEEDED
    assert [message.model.model_uuid for message in seen if message.HasField("model")] == ["m2"]
    assert seen[-1].removed_model_uuid == "m1"


async def test_a_failed_download_is_seen_by_watchers(service: Service, web: ModelServer) -> None:
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    assert (await stream.read()).synced
    await service.start("m1", web.url("none.gguf"))
    async with asyncio.timeout(20):
        while (message := await stream.read()).download.state != pb.DOWNLOAD_STATE_FAILED:
            pass
    stream.cancel()
    assert message.download.error.reason == "SOURCE_UNAVAILABLE"


async def test_more_transfers_than_may_run_at_once_wait_their_turn(service: Service, web: ModelServer) -> None:
    for number in range(6):
        web.files[f"{number}.gguf"] = model_bytes(str(number))
        web.hold_after[f"{number}.gguf"] = 64
        await service.start(f"m{number}", web.url(f"{number}.gguf"))
    async with asyncio.timeout(10):
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
        async with asyncio.timeout(20):
            # One look at the bucket is asked four times: it has been given up when there is a fifth.
            while len(s3.requests) < 5:
                await asyncio.sleep(0.01)
        assert (await service.get("m1")).state == pb.DOWNLOAD_STATE_QUEUED
        monkeypatch.setattr("services.download.transfer_run.STORE_PATIENCE_SECONDS", 0.0)
        download = await service.fetched("m2", web.url("a.gguf"))
        assert (download.state, download.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
        assert (await service.state("m1")).error.reason == "STORE_UNAVAILABLE"
