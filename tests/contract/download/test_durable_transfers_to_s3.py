"""A transfer in parts to S3 goes on where a process was killed, or in another one, and leaves neither uploads nor staged objects."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.v1 import download_pb2 as pb
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.journal import HEADER, counted, opened, until
from tests.contract.download.replica import SECONDS, NewReplica, Replica, replicas
from tests.contract.ranged_source import RangedServer, large_model, ranged_server
from tests.unit.fake_s3 import FakeS3, fake_s3

PART = 5 << 20
"""The smallest part of S3."""
PARALLEL = 2
PARTS = 9

DATA = large_model(PARTS * PART - PART // 2, seed=5)
DIGEST = hashlib.sha256(DATA).hexdigest()
AGAIN = PARALLEL * PART + HEADER
"""Most bytes that one end of a process costs."""


@pytest.fixture
async def source() -> AsyncIterator[RangedServer]:
    async with ranged_server(DATA) as server:
        yield server


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture
async def new_replica(
    tmp_path: Path,
    s3: FakeS3,
    source: RangedServer,
    connect: Connect,
    as_caller: AsCaller,
    start_standings: StartStandings,
) -> AsyncIterator[NewReplica]:
    environment = {
        **s3.environment,
        "LLAMESH_HTTP_SOURCE_HOSTS": source.host,
        "LLAMESH_DOWNLOAD_PART_BYTES": str(PART),
        "LLAMESH_DOWNLOAD_PARALLEL_PARTS": str(PARALLEL),
    }
    async with replicas(tmp_path, environment, connect, as_caller("ada", "manage"), start_standings) as new:
        yield new


DIGESTS = pytest.mark.parametrize("digest", ["", DIGEST], ids=["staged", "in place"])
"""What the request says of the bytes: if it says nothing, they are staged and copied."""


async def half_fetched(replica: Replica, source: RangedServer, digest: str) -> None:
    source.stop_at = len(DATA) // 2
    await replica.start()
    await replica.download("m1", source.url, digest)
    async with asyncio.timeout(SECONDS):
        await source.stopped.wait()


async def only_the_model_is_left(settings: Settings, s3: FakeS3) -> None:
    async with opened(settings) as database:

        async def alone() -> bool:
            return await counted(database) == (0, 0) and not s3.uploads and len(s3.objects) == 1

        await until(alone)
    assert s3.objects[next(iter(s3.objects))] == DATA


@DIGESTS
async def test_another_process_goes_on_with_the_upload(
    new_replica: NewReplica, source: RangedServer, s3: FakeS3, postgres: Callable[[], str], digest: str
) -> None:
    url = postgres()
    one, two = new_replica("one", DATABASE_URL=url), new_replica("two", DATABASE_URL=url)
    await half_fetched(one, source, digest)
    await two.start()
    assert (await two.state("m1")).state == pb.DOWNLOAD_STATE_RUNNING
    assert len(s3.uploads) == 1
    assert await one.end(signal.SIGTERM) == 0
    source.go_on_until(len(DATA) * 100)
    found = await two.ended("m1")
    assert (found.state, found.sha256, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST, 1)
    assert source.sent <= len(DATA) + HEADER + AGAIN
    await only_the_model_is_left(Settings(home=two.settings.home, database_url=SecretStr(url)), s3)


@DIGESTS
async def test_a_cancelled_transfer_leaves_no_upload(
    new_replica: NewReplica, source: RangedServer, s3: FakeS3, digest: str
) -> None:
    replica = new_replica("one")
    await half_fetched(replica, source, digest)
    await replica.cancel("m1")
    async with opened(replica.settings) as database:

        async def nothing() -> bool:
            return await counted(database) == (0, 0) and not s3.uploads and not s3.objects

        await until(nothing)


@DIGESTS
async def test_a_paused_transfer_keeps_its_upload_over_a_kill_until_it_is_resumed_by_another_process(
    new_replica: NewReplica, source: RangedServer, s3: FakeS3, postgres: Callable[[], str], digest: str
) -> None:
    url = postgres()
    one, two = new_replica("one", DATABASE_URL=url), new_replica("two", DATABASE_URL=url)
    await half_fetched(one, source, digest)
    paused = await one.pause("m1")
    assert (paused.state, paused.bytes_done % PART) == (pb.DOWNLOAD_STATE_PAUSED, 0)
    await one.end(signal.SIGKILL)
    source.go_on_until(len(DATA) * 100)
    await two.start()
    assert (await two.state("m1")).state == pb.DOWNLOAD_STATE_PAUSED
    assert len(s3.uploads) == 1
    await two.resume("m1")
    found = await two.ended("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST)
    assert source.sent <= len(DATA) + HEADER + AGAIN
    await only_the_model_is_left(Settings(home=two.settings.home, database_url=SecretStr(url)), s3)


async def test_a_file_of_a_known_digest_is_uploaded_under_its_key(
    new_replica: NewReplica, source: RangedServer, s3: FakeS3
) -> None:
    replica = new_replica("one")
    await half_fetched(replica, source, DIGEST)
    assert not s3.objects
    source.go_on_until(len(DATA) * 100)
    assert (await replica.ended("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    await only_the_model_is_left(replica.settings, s3)
    assert not s3.whole_copies
    assert [key.partition("-")[0] for key in s3.objects] == [f"models/{DIGEST}"]
    await replica.download("m2", source.url, DIGEST)
    assert (await replica.ended("m2")).state == pb.DOWNLOAD_STATE_SUCCEEDED
    await replica.delete("m1")
    assert len(s3.objects) == 1
    await replica.delete("m2")
    assert not s3.objects


async def test_bytes_of_another_digest_are_never_visible(
    new_replica: NewReplica, source: RangedServer, s3: FakeS3
) -> None:
    replica = new_replica("one")
    await half_fetched(replica, source, "0" * 64)
    source.go_on_until(len(DATA) * 100)
    found = await replica.ended("m1")
    assert (found.state, "expected was" in found.error.message) == (pb.DOWNLOAD_STATE_FAILED, True)
    async with opened(replica.settings) as database:

        async def nothing() -> bool:
            return await counted(database) == (0, 0) and not s3.uploads and not s3.objects

        await until(nothing)
    assert not [path for method, path in s3.requests if method == "POST" and "uploadId=" in path]
