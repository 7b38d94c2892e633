"""Several download services on one PostgreSQL and one bucket: they share the work, follow each other, and never lose an object.

The services are processes of their own with homes of their own; PostgreSQL is real; the S3 server is the fake of tests/unit here,
and a real MinIO in tests/cluster/test_downloads_are_shared_on_minio.py.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import grpc
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text

from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.v1 import download_pb2 as pb
from llamesh.v1.download_pb2_grpc import CatalogueServiceStub
from services.download.tables import ModelFileRow, UnownedObjectRow
from services.download.transfer_requests import TransferRequest
from services.download.transfers import Transfers
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.replica import SECONDS, NewReplica, Replica, replicas
from tests.contract.model_source import ModelServer, model_bytes, model_server
from tests.contract.patience import available
from tests.unit.fake_s3 import FakeS3, fake_s3

SEED = 11
ROUNDS = 30
ASKED = 6
"""Calls of a client in a round."""


class ObjectServer(Protocol):
    """What the tests that also run on a real server use of it."""

    delay: dict[str, float]

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a member that uses it."""

    @property
    def objects(self) -> dict[str, bytes]:
        """Every object and its bytes."""


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture
async def web() -> AsyncIterator[ModelServer]:
    async with model_server() as server:
        yield server


@pytest.fixture
def database_url(postgres: Callable[[], str]) -> str:
    return postgres()


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(Settings(home=tmp_path / "looker", database_url=SecretStr(database_url)), "download")
    yield opened
    await opened.close()


@pytest.fixture
async def new_replica(
    database_url: str,
    s3: ObjectServer,
    web: ModelServer,
    tmp_path: Path,
    connect: Connect,
    as_caller: AsCaller,
    start_standings: StartStandings,
) -> AsyncIterator[NewReplica]:
    environment = {
        "DATABASE_URL": database_url,
        **s3.environment,
        "LLAMESH_HTTP_SOURCE_HOSTS": web.host,
    }
    async with replicas(tmp_path, environment, connect, as_caller("ada", "manage"), start_standings) as new:
        yield new


@asynccontextmanager
async def running(*members: Replica) -> AsyncIterator[None]:
    # One after the other: the first one migrates.
    for replica in members:
        await replica.start()
        with pytest.raises(grpc.aio.AioRpcError, match="there is no download of"):
            # A busy process may not know yet what its callers may do.
            await available(partial(replica.state, "nothing"))
    yield


async def half_fetch(replica: Replica, web: ModelServer) -> None:
    """Let a process fetch a model as m1 until the web server holds the rest back."""
    web.files["a.gguf"] = model_bytes("big", 3 << 20)
    web.hold_after["a.gguf"] = 2 << 20
    await replica.download("m1", web.url("a.gguf"))
    await web.holding.wait()


async def test_a_transfer_of_a_killed_process_is_taken_over(new_replica: NewReplica, web: ModelServer) -> None:
    one, two = new_replica("one"), new_replica("two")
    async with running(one):
        await half_fetch(one, web)
        # Started only now, because it might have claimed the transfer first.
        async with running(two):
            # The other one leaves it alone while it is worked on: one look, and no second reader.
            await two.download("m1")
            await asyncio.sleep(0.5)
            assert web.asked == ["a.gguf"]
            await one.end(signal.SIGKILL)
            web.go_on.set()
            found = await two.ended("m1")
    assert (found.state, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, 1)
    assert web.asked == ["a.gguf", "a.gguf"]


async def waits_for(replica: Replica, model_uuid: str, other: str) -> None:
    """Wait until a process shows that a transfer waits for that of another model."""
    async with asyncio.timeout(SECONDS):
        while other not in (found := await replica.state(model_uuid)).error.message:
            assert found.state == pb.DOWNLOAD_STATE_QUEUED, found
            await asyncio.sleep(0.05)
    assert found.error == pb.DownloadError(message=f"waits for the download of {other}, which fetches the same source")


async def test_two_processes_fetch_one_source_once(new_replica: NewReplica, web: ModelServer) -> None:
    web.etag = '"v1"'
    one, two = new_replica("one"), new_replica("two")
    async with running(one):
        await half_fetch(one, web)
        async with running(two):
            await two.download("m2", web.url("a.gguf"))
            await waits_for(two, "m2", "m1")
            assert web.asked == ["a.gguf"]
            web.go_on.set()
            for name in ("m1", "m2"):
                assert (await two.ended(name)).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_of_two_transfers_of_one_source_that_begin_at_once_in_two_processes_one_waits(
    new_replica: NewReplica, database: Database
) -> None:
    maker = new_replica("maker")
    async with running(maker):
        await maker.end(signal.SIGTERM)
    processes = [Transfers(database, utc_now, name) for name in ("a", "b")]
    for number in range(ROUNDS):
        source = f"hf:ada/{number}"
        rows = [
            await processes[0].start(TransferRequest(f"{source}-{user}", source, source, user, requested_by=user))
            for user in ("ada", "ben")
        ]
        both = list(zip(processes, rows, strict=True))
        begun = await asyncio.gather(*(each.begin(row.model_uuid, row.attempt) for each, row in both))
        assert [row is None for row in begun].count(True) == 1, number
        (first, _), (second, waiting) = both if begun[1] is None else reversed(both)
        # Its bytes have not come for minutes.
        await first.claims.renew([])
        assert await second.begin(waiting.model_uuid, waiting.attempt) is not None, number


async def test_a_process_that_dies_holds_others_no_longer_than_its_claim(
    new_replica: NewReplica, web: ModelServer, database: Database
) -> None:
    web.etag = '"v1"'
    one, two = new_replica("one"), new_replica("two")
    async with running(one):
        await half_fetch(one, web)
        async with running(two):
            await one.end(signal.SIGKILL)
            await two.download("m2", web.url("a.gguf"))
            await waits_for(two, "m2", "m1")
            web.go_on.set()
            async with database.begin() as session:
                await session.execute(text("UPDATE transfer SET claim_expires = now() WHERE model_uuid = 'm1'"))
            for name in ("m1", "m2"):
                assert (await two.ended(name)).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_no_process_waits_for_bytes_of_another_that_it_could_not_recognise(
    new_replica: NewReplica, web: ModelServer
) -> None:
    """The server gives neither a digest nor an ETag."""
    one, two = new_replica("one"), new_replica("two")
    async with running(one, two):
        await half_fetch(one, web)
        await two.download("m2", web.url("a.gguf"))
        async with asyncio.timeout(SECONDS):
            while (await two.state("m2")).state != pb.DOWNLOAD_STATE_RUNNING:
                await asyncio.sleep(0.05)
        assert (await two.state("m1")).state == pb.DOWNLOAD_STATE_RUNNING


async def test_a_process_that_ends_in_order_hands_over_at_once(
    new_replica: NewReplica, web: ModelServer, database: Database
) -> None:
    one, two = new_replica("one"), new_replica("two")
    async with running(one, two):
        await half_fetch(one, web)
        assert await one.end(signal.SIGTERM) == 0
        async with database.begin() as session:
            # A claim that it had left behind would now last until after this test.
            await session.execute(
                text("UPDATE transfer SET claim_expires = now() + interval '1 hour' WHERE claimed_by LIKE :home"),
                {"home": f"%:{one.settings.home}/%"},
            )
        web.go_on.set()
        async with asyncio.timeout(SECONDS):
            while (await two.state("m1")).state != pb.DOWNLOAD_STATE_SUCCEEDED:
                await asyncio.sleep(0.05)


async def test_a_watch_of_one_process_sees_changes_of_another(
    new_replica: NewReplica, web: ModelServer, connect: Connect
) -> None:
    web.files["a.gguf"] = model_bytes("a")
    one, two = new_replica("one"), new_replica("two")
    async with running(one, two):
        catalogue = CatalogueServiceStub(connect(two.settings, "download"))
        stream = catalogue.WatchCatalogue(pb.WatchCatalogueRequest(), wait_for_ready=True)
        assert (await stream.read()).synced
        await one.download("m1", web.url("a.gguf"))
        seen: list[str] = []
        async with asyncio.timeout(SECONDS):
            while "model m1" not in seen or "SUCCEEDED" not in seen:
                change = await stream.read()
                if change.HasField("model"):
                    seen.append(f"model {change.model.model_uuid}")
                else:
                    seen.append(pb.DownloadState.Name(change.download.state)[15:])
            await one.delete("m1")
            while not (change := await stream.read()).removed_model_uuid:
                pass
        assert change.removed_model_uuid == "m1"
        stream.cancel()


async def test_a_frozen_process_that_comes_back_changes_nothing(
    new_replica: NewReplica, web: ModelServer, database: Database
) -> None:
    one, two = new_replica("one"), new_replica("two")
    async with running(one, two):
        await half_fetch(one, web)
        assert one.process is not None
        one.process.send_signal(signal.SIGSTOP)
        async with database.begin() as session:
            await session.execute(text("UPDATE transfer SET claim_expires = now() - interval '1 second'"))
        web.go_on.set()
        await two.download("m1")
        taken = await two.ended("m1")
        one.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(SECONDS):
            while b"transfer begins" not in one.log.read_bytes():
                await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        assert await one.state("m1") == taken == await two.state("m1")
        assert await one.end(signal.SIGTERM) == 0


async def test_a_process_with_wrong_credentials_ends_no_transfer_that_another_can_do(
    new_replica: NewReplica, s3: FakeS3, web: ModelServer
) -> None:
    s3.refused_keys.add("wrong")
    web.files["a.gguf"] = model_bytes()
    wrong, right = new_replica("a", MINIO_ACCESS_KEY="wrong"), new_replica("b")
    async with running(wrong):
        await wrong.download("m1", web.url("a.gguf"))
        async with asyncio.timeout(SECONDS):
            while not (waiting := await wrong.state("m1")).error.reason:
                await asyncio.sleep(0.05)
        assert (waiting.state, waiting.error.reason) == (pb.DOWNLOAD_STATE_QUEUED, "STORE_UNAVAILABLE")
        assert "InvalidAccessKeyId" in waiting.error.message
        async with running(right):
            assert (await right.ended("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
            for number in range(3):
                await wrong.download(f"n{number}", web.url("a.gguf"))
                assert (await wrong.ended(f"n{number}")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_another_store_on_the_same_database_is_refused_by_name(new_replica: NewReplica, s3: FakeS3) -> None:
    one = new_replica("one")
    other = new_replica("other", MINIO_BUCKET="another")
    folder = new_replica("folder", MINIO_ENDPOINT="")
    async with running(one):
        for refused in (other, folder):
            await refused.start()
            assert refused.process is not None
            assert await asyncio.wait_for(refused.process.wait(), SECONDS) == 2
            last = refused.log.read_text().strip().splitlines()[-1]
            assert f"another object store, s3://{s3.endpoint}/inference-models, used by process" in last


async def test_fetching_and_deleting_the_same_bytes_never_leaves_a_record_without_its_object(
    new_replica: NewReplica, web: ModelServer, s3: ObjectServer, database: Database
) -> None:
    """Two processes, one content under two names, so that its last record goes all the time; one process is killed on the way."""
    web.files["a.gguf"] = model_bytes("a")
    s3.delay = {"DELETE": 0.05}
    chance = random.Random(SEED)
    names = [f"m{number}" for number in range(2)]
    one, two = new_replica("one"), new_replica("two")
    did: Counter[str] = Counter()

    async def client(replica: Replica) -> None:
        for _ in range(ASKED):
            name = chance.choice(names)
            try:
                if chance.random() < 0.5:
                    await replica.download(name, web.url("a.gguf"))
                    did["download"] += 1
                else:
                    await replica.delete(name)
                    did["delete"] += 1
            except grpc.aio.AioRpcError as error:
                did[error.code().name] += 1

    async def settled() -> dict[str, str]:
        """The records and their keys once nothing is under way."""
        for name in names:
            try:
                assert (await one.ended(name)).state == pb.DOWNLOAD_STATE_SUCCEEDED
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND  # noqa: PT017 - it was deleted last
        async with database.read() as session:
            found = await session.execute(select(ModelFileRow.model_uuid, ModelFileRow.object_key))
            return {model_uuid: key for model_uuid, key in found.all()}  # noqa: C416 - rows are no tuples to the checker

    async with running(one, two):
        for number in range(ROUNDS):
            await asyncio.gather(*(client(replica) for replica in (one, two) for _ in range(4)))
            if number == ROUNDS // 2:
                await two.end(signal.SIGKILL)
                await two.start()
            for name, key in (await settled()).items():
                assert s3.objects.get(key) == web.files["a.gguf"], f"{name} has lost {key} in round {number}, {did}"
        keys = set((await settled()).values())
        async with database.read() as session:
            unowned = set(await session.scalars(select(UnownedObjectRow.object_key)))
    assert did["download"] > ROUNDS, did
    assert did["delete"] > ROUNDS, did
    assert {key for key in s3.objects if key.startswith("models/")} <= keys | unowned
