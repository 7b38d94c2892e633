"""Whatever fails beside a transfer, database, store or disk, the transfer goes on once it works again, and damage is said and repaired.

The S3 server is the fake of tests/unit; the same faults on a real MinIO are in tests/cluster.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.channels import channel
from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.kit.database_failures import failure_of
from llamesh.kit.errors import MeshError, Reason
from llamesh.v1 import download_pb2 as pb
from services.download import service as wiring
from services.download import store_health, worker
from services.download.waits import Waits
from tests.contract.model_source import ModelServer, model_bytes, model_server
from tests.contract.rich_status import refused
from tests.contract.test_downloads import ENDED, TINY, OpenWith, Service, import_file, open_with, sha256
from tests.unit.fake_s3 import FakeS3, fake_s3

__all__ = ["open_with"]


class _Locked(sqlite3.OperationalError):
    """FAKE: as SQLite raises it when another process keeps its lock for too long."""

    sqlite_errorname = "SQLITE_BUSY"


def told(error: Exception) -> Exception:
    """The failure as the database tells it."""
    found = failure_of(error)
    assert found is not None
    return found


FAULTS: dict[str, Callable[[], Exception]] = {
    "full disk": lambda: MeshError(Reason.ERROR_REASON_STORAGE_FULL, "the disk is full"),
    "database away": lambda: MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "no answer", {"component": "database"}
    ),
    "locked": lambda: told(OperationalError("UPDATE", {}, _Locked("database is locked"))),
    "connection lost": lambda: told(InterfaceError("UPDATE", {}, OSError("reset"), connection_invalidated=True)),
    "system": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "too slow": lambda: TimeoutError("no answer in time"),
}


@dataclass
class Faults:
    """Lets every operation of the service's database fail while `fault` is set, or once `after` more have succeeded."""

    fault: Callable[[], Exception] | None = None
    failed: int = 0
    after: int = 0
    steps: int = 0
    """Operations so far."""
    lost_answers: int = 0
    """So many commits that follow happen, and seem to have failed."""

    def step(self) -> None:
        self.steps += 1
        if self.fault is None:
            return
        if self.after > 0:
            self.after -= 1
            return
        self.failed += 1
        raise self.fault()

    def wrap(self, database: Database) -> Database:
        begin, read = database.begin, database.read

        @asynccontextmanager
        async def failing_begin() -> AsyncIterator[AsyncSession]:
            self.step()
            async with begin() as session:
                yield session
            if self.lost_answers:
                self.lost_answers -= 1
                self.failed += 1
                raise FAULTS["connection lost"]()

        @asynccontextmanager
        async def failing_read() -> AsyncIterator[AsyncSession]:
            self.step()
            async with read() as session:
                yield session

        database.begin, database.read = failing_begin, failing_read  # type: ignore[method-assign]
        return database


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    found = Faults()
    opened = wiring.open_database
    monkeypatch.setattr(wiring, "open_database", lambda *arguments: found.wrap(opened(*arguments)))
    # The pauses are of no interest here.
    monkeypatch.setattr(worker, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(worker, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(store_health, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr("llamesh.background.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr("llamesh.background.LONGEST_BACKOFF", 0.05)
    return found


@pytest.fixture
async def web() -> AsyncIterator[ModelServer]:
    async with model_server() as server:
        yield server


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture
def on_s3(one_settings: Settings, open_with: OpenWith, s3: FakeS3) -> Callable[[], Awaitable[Service]]:
    secrets = {"minio_access_key": SecretStr("k"), "minio_secret_key": SecretStr("s")}
    return lambda: open_with(one_settings, minio_endpoint=s3.endpoint, **secrets)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_database_that_fails_during_a_transfer_costs_nothing(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, fault: str
) -> None:
    """Every task of the service meets the fault: rows, progress, claims and the sweep; afterwards all go on."""
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.fault = FAULTS[fault]
    await until(lambda: faults.failed > 20)
    web.go_on.set()
    failed = faults.failed
    await until(lambda: faults.failed > failed + 20)
    faults.fault = None
    found = await service.state("m1")
    assert (found.state, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, 0)
    assert web.asked == ["a.gguf"]
    assert len(service.stored) == 1
    # Nothing of the service has ended: the next transfer is taken up, told and written as before.
    web.files["b.gguf"] = TINY
    assert (await service.fetched("m2", web.url("b.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED


@pytest.mark.parametrize("steps", range(8))
async def test_a_database_that_fails_at_any_step_of_the_end_loses_nothing(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, steps: int
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.after = steps
    faults.fault = FAULTS["database away"]
    web.go_on.set()
    await until(lambda: faults.failed > 10)
    faults.fault = None
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert web.asked == ["a.gguf"]
    assert (await service.path("m1")).read_bytes() == web.files["a.gguf"]
    await until(lambda: len(service.stored) == 1)


@pytest.mark.parametrize("commits", range(1, 8))
async def test_commits_whose_answer_is_lost_are_not_taken_for_failures(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, commits: int
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    assert (await stream.read()).synced
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.lost_answers = commits
    web.go_on.set()
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert web.asked == ["a.gguf"]
    assert (await service.path("m1")).read_bytes() == web.files["a.gguf"]
    # Who watches is told of it, too.
    async with asyncio.timeout(10):
        while (await stream.read()).download.state != pb.DOWNLOAD_STATE_SUCCEEDED:
            pass
    stream.cancel()
    await until(lambda: len(service.stored) == 1)


async def test_a_failure_that_cannot_be_written_is_written_later(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults
) -> None:
    web.files["a.gguf"] = TINY[:-1] + b""
    web.hold_after["a.gguf"] = 64
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    faults.fault = FAULTS["full disk"]
    web.go_on.set()
    await until(lambda: faults.failed > 10)
    faults.fault = None
    found = await service.state("m1")
    assert (found.error.reason, web.asked) == ("MODEL_INVALID", ["a.gguf"])


async def test_the_rows_may_be_looked_at_often_while_a_cancelled_transfer_cleans_up(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults
) -> None:
    """Each look used to cancel the transfer again, and with it the removal of its file."""
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await open_with(one_settings)
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    await until(lambda: any(path.stat().st_size >= 1 << 20 for path in service.stored))
    go_on = threading.Event()
    # The one thread is busy: what removes the file waits for it.
    threads = ThreadPoolExecutor(1)
    threads.submit(go_on.wait)
    asyncio.get_running_loop().set_default_executor(threads)
    try:
        await service.cancel("m1")
        looked = faults.steps
        await until(lambda: faults.steps > looked + 20)
    finally:
        go_on.set()
    await service.no_files()


async def store_is_well(service: Service, part: str = "store") -> bool:
    async with channel(service.settings, "download") as connection:
        request = health_pb2.HealthCheckRequest(service=part)
        answer = await health_pb2_grpc.HealthStub(connection).Check(request)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def health_turns(service: Service, well: bool, part: str = "store") -> None:
    async with asyncio.timeout(20):
        while await store_is_well(service, part) is not well:
            await asyncio.sleep(0.02)


async def test_a_transfer_waits_for_a_store_that_goes_away_and_goes_on(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await on_s3()
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    s3.refuse = dict.fromkeys(("GET", "HEAD", "PUT", "POST"), (503, "SlowDown"))
    web.go_on.set()
    async with asyncio.timeout(20):
        while not (waiting := await service.get("m1")).error.reason:
            await asyncio.sleep(0.02)
    assert (waiting.state, waiting.error.reason) == (pb.DOWNLOAD_STATE_QUEUED, "STORE_UNAVAILABLE")
    assert waiting.error.message.startswith("waits for the object store: ")
    assert "HTTPConnectionPool" not in waiting.error.message
    await health_turns(service, well=False)
    s3.refuse = {}
    found = await service.state("m1")
    assert (found.state, found.error.reason, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, "", 1)
    await health_turns(service, well=True)


class Later:
    """The waits of the service, and by how many seconds its clock is ahead."""

    waits: Waits
    seconds = 0.0


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    found = Later()

    def make(clock: Callable[[], float]) -> Waits:
        found.waits = Waits(clock)
        return found.waits

    monkeypatch.setattr(wiring, "monotonic", lambda: time.monotonic() + found.seconds)
    monkeypatch.setattr(wiring, "Waits", make)
    return found


async def test_a_transfer_does_not_fail_for_setbacks_between_which_the_store_worked(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults, later: Later
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await on_s3()
    await service.start("m1", web.url("a.gguf"))
    for setbacks in (1, 2):
        await web.holding.wait()
        web.holding.clear()
        if setbacks == 2:
            web.hold_after.clear()
        later.seconds += 700.0
        s3.refuse = {"PUT": (503, "SlowDown")}
        # Only the answer that waits goes on; the next attempt may come before the next line.
        web.go_on.set()
        web.go_on.clear()
        await service.state("m1", pb.DOWNLOAD_STATE_QUEUED, *ENDED)
        s3.refuse = {}
    found = await service.state("m1")
    assert (found.state, found.error.reason, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, "", 2)


async def test_nothing_is_kept_of_a_transfer_that_was_set_back_and_cancelled(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults, later: Later
) -> None:
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    service = await on_s3()
    await service.start("m1", web.url("a.gguf"))
    await web.holding.wait()
    s3.refuse = dict.fromkeys(("GET", "HEAD", "PUT", "POST"), (503, "SlowDown"))
    web.go_on.set()
    await until(lambda: later.waits.of_store)
    await service.cancel("m1")
    s3.refuse = {}
    await until(lambda: not later.waits.of_store)


async def test_wrong_credentials_are_seen_in_health(
    on_s3: Callable[[], Awaitable[Service]], s3: FakeS3, faults: Faults
) -> None:
    s3.refuse = {"GET": (403, "InvalidAccessKeyId"), "HEAD": (403, "InvalidAccessKeyId")}
    service = await on_s3()
    await health_turns(service, well=False, part="store.credentials")
    assert not await store_is_well(service)
    s3.refuse = {}
    await health_turns(service, well=True, part="store.credentials")
    await health_turns(service, well=True)


async def problems(service: Service) -> dict[str, str]:
    """What the list of models says against each."""
    listed = await service.catalogue.ListCatalogueModels(pb.ListCatalogueModelsRequest())
    return {model.model_uuid: model.problem for model in listed.models}


async def test_a_bucket_that_was_deleted_is_made_again_and_its_models_say_so(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    web.files["a.gguf"] = web.files["b.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    s3.buckets.clear()
    s3.objects.clear()
    assert await problems(service) == {"m1": ""}
    with refused("MODEL_CORRUPT") as refusal:
        await service.path("m1")
    assert refusal.metadata == {"modelUuid": "m1"}
    assert "cannot be used" in (await problems(service))["m1"]
    said = await service.get("m1")
    assert (said.state, said.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_CORRUPT")
    assert "Download the model again" in said.error.remedy
    # What is new does not wait for a restart.
    assert (await service.fetched("m2", web.url("b.gguf"))).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert s3.buckets == {"inference-models"}
    # The same bytes are there again: asking for the first one repairs it without a second object.
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.path("m1")).read_bytes() == TINY
    assert len(s3.objects) == 1
    assert await problems(service) == {"m1": "", "m2": ""}


async def test_a_damaged_object_is_read_once_and_repaired_by_downloading_again(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    web.files["a.gguf"] = TINY
    service = await on_s3()
    for name in ("m1", "m2"):
        await service.fetched(name, web.url("a.gguf"))
    [key] = s3.objects
    s3.objects[key] = TINY[:-1] + b"X"
    for name in ("m1", "m1", "m2", "m1"):
        with refused("MODEL_CORRUPT"):
            await service.path(name)
    assert len([path for method, path in s3.requests if method == "GET" and key in path]) == 1
    assert (await service.get("m1")).error.reason == "MODEL_CORRUPT"
    # Both share the object, and what is known of it.
    assert all((await problems(service)).values())
    stream = service.catalogue.WatchCatalogue(pb.WatchCatalogueRequest())
    while not (await stream.read()).synced:
        pass
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert not any((await problems(service)).values())
    sound = set()
    async with asyncio.timeout(10):
        while sound != {"m1", "m2"}:
            message = await stream.read()
            if message.HasField("model") and not message.model.problem:
                sound.add(message.model.model_uuid)
    stream.cancel()
    assert (await service.path("m1")).read_bytes() == TINY
    # The other model with the same bytes is repaired along with it.
    assert (await service.path("m2")).read_bytes() == TINY
    assert list(s3.objects) != [key]
    assert list(s3.objects.values()) == [TINY]


async def test_an_object_that_comes_back_heals_its_model(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    """As after a volume that was not mounted, or a backup that was restored."""
    web.files["a.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    kept = dict(s3.objects)
    s3.objects.clear()
    with refused("MODEL_CORRUPT"):
        await service.path("m1")
    assert (await problems(service))["m1"]
    s3.objects.update(kept)
    assert (await service.path("m1")).read_bytes() == TINY
    assert await problems(service) == {"m1": ""}
    assert (await service.get("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_asking_again_for_a_model_whose_object_is_gone_fetches_it(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, s3: FakeS3, faults: Faults
) -> None:
    """Nobody had noticed: the record said SUCCEEDED until now."""
    web.files["a.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    s3.objects.clear()
    assert (await service.start("m1")).state == pb.DOWNLOAD_STATE_QUEUED
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    assert (await service.path("m1")).read_bytes() == TINY


async def test_a_local_copy_of_the_wrong_length_is_fetched_again(
    on_s3: Callable[[], Awaitable[Service]], web: ModelServer, faults: Faults
) -> None:
    web.files["a.gguf"] = TINY
    service = await on_s3()
    await service.fetched("m1", web.url("a.gguf"))
    path = await service.path("m1")
    path.write_bytes(TINY[:100])
    assert (await service.path("m1")).read_bytes() == TINY


def _truncate(file: Path) -> None:
    os.truncate(file, 100)


def _alter(file: Path) -> None:
    file.write_bytes(TINY[:-1] + b"X")
    later = file.stat().st_mtime + 60
    os.utime(file, (later, later))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": _truncate,
    "altered": _alter,
    "deleted": lambda file: file.unlink(),
    "folder gone": lambda file: shutil.rmtree(file.parent.parent),
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_file_of_a_directory_is_said_and_repaired(
    one_settings: Settings, open_with: OpenWith, faults: Faults, damage: str
) -> None:
    service = await open_with(one_settings)
    await service.fetched("m1", import_file(service, "a.gguf", TINY))
    [file] = service.stored
    DAMAGE[damage](file)
    for _ in range(3):
        with refused("MODEL_CORRUPT"):
            await service.path("m1")
    assert (await service.get("m1")).error.reason == "MODEL_CORRUPT"
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    path = await service.path("m1")
    assert sha256(path.read_bytes()) == sha256(TINY)
    await until(lambda: service.stored == [path])


async def test_a_full_disk_fails_a_transfer_in_words_and_the_next_one_succeeds(
    one_settings: Settings, open_with: OpenWith, web: ModelServer, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.files["a.gguf"] = TINY
    service = await open_with(one_settings)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("llamesh.kit.objects.staging.os.write", full)
        found = await service.fetched("m1", web.url("a.gguf"))
    assert (found.error.reason, service.stored) == ("STORE_UNAVAILABLE", [])
    assert "No space left on device" in found.error.message
    assert (await service.fetched("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
