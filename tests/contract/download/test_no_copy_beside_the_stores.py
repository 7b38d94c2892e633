"""The bytes of a model are on no disk between its source and the store, and once on that of a machine whose store is a folder."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from llamesh.v1 import download_pb2 as pb
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.conftest import Service, import_file, sha256
from tests.contract.download.replica import NewReplica, Replica, replicas
from tests.contract.model_source import model_bytes
from tests.contract.patience import available
from tests.contract.ranged_source import large_model
from tests.files import files_below
from tests.split_models import Parts
from tests.unit.fake_s3 import FakeS3, fake_s3

PART = 5 << 20
"""The smallest part of S3."""
DATA = large_model(3 * PART + (1 << 20), seed=9)
SOURCE = "s3://models/a.gguf"
SMALL = 4 << 20
"""Bytes that a process may write for other reasons than the model, fewer than a part: its log, its database with a journal of parts."""


@pytest.fixture
def source() -> Iterator[FakeS3]:
    with fake_s3() as server:
        server.buckets.add("models")
        server.objects["a.gguf"] = DATA
        yield server


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture
async def new_replica(
    tmp_path: Path, source: FakeS3, connect: Connect, as_caller: AsCaller, start_standings: StartStandings
) -> AsyncIterator[NewReplica]:
    (tmp_path / "temporary").mkdir()
    place = {"endpoint": source.endpoint, "bucket": "models", "secure": False}
    keys = {"access_key": source.access_key, "secret_key": source.secret_key}
    environment = {
        "TMPDIR": str(tmp_path / "temporary"),
        "LLAMESH_S3_SOURCES": json.dumps({"models": place | keys}),
    }
    async with replicas(tmp_path, environment, connect, as_caller("ada", "manage"), start_standings) as new:
        yield new


def written(folder: Path, process: int) -> int:
    """The bytes of the files below a folder and of the files without a name that a process has open."""
    found: dict[tuple[int, int], int] = {}
    for path in (*files_below(folder), *Path(f"/proc/{process}/fd").iterdir()):
        with suppress(FileNotFoundError):
            named = path.is_relative_to(folder)
            about = path.lstat() if named else path.stat()
            if stat.S_ISREG(about.st_mode) and (named or not about.st_nlink):
                found[about.st_dev, about.st_ino] = about.st_size
    return sum(found.values())


async def most_written(
    replica: Replica, folder: Path, servers: list[FakeS3], digest: str, monkeypatch: pytest.MonkeyPatch
) -> int:
    """Fetch the model, and return by how many bytes the disk was fuller at most, before and after each request for an object."""
    await replica.start()
    with pytest.raises(grpc.aio.AioRpcError, match="there is no download of"):
        await available(partial(replica.state, "nothing"))
    assert replica.process is not None
    before, looks = written(folder, replica.process.pid), []

    def look() -> None:
        assert replica.process is not None
        looks.append(written(folder, replica.process.pid) - before)

    def looking(real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def answer(*asked: Any) -> Any:
            look()
            answered = await real(*asked)
            look()
            return answered

        return answer

    for server in servers:
        for call in ("_get", "_put", "_post"):
            monkeypatch.setattr(server, call, looking(getattr(server, call)))
    await replica.download("m1", SOURCE, digest)
    found = await replica.ended("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, sha256(DATA)), found
    look()
    assert len(looks) > 2
    return max(looks)


@pytest.mark.parametrize("digest", ["", sha256(DATA)], ids=["staged", "in place"])
@pytest.mark.parametrize("part", [PART, 1 << 30], ids=["parts", "stream"])
async def test_a_transfer_between_two_s3_servers_writes_no_byte_of_the_model_to_a_disk(
    new_replica: NewReplica,
    tmp_path: Path,
    source: FakeS3,
    s3: FakeS3,
    monkeypatch: pytest.MonkeyPatch,
    digest: str,
    part: int,
) -> None:
    replica = new_replica("one", LLAMESH_DOWNLOAD_PART_BYTES=str(part), **s3.environment)
    assert await most_written(replica, tmp_path, [source, s3], digest, monkeypatch) < SMALL
    assert list(s3.objects.values()) == [DATA]


@pytest.mark.parametrize("part", [PART, 1 << 30], ids=["parts", "stream"])
async def test_a_transfer_to_a_folder_writes_each_byte_once(
    new_replica: NewReplica, tmp_path: Path, source: FakeS3, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    replica = new_replica("one", LLAMESH_DOWNLOAD_PART_BYTES=str(part))
    most = await most_written(replica, tmp_path, [source], "", monkeypatch)
    assert len(DATA) <= most < len(DATA) + SMALL


@pytest.mark.parametrize(
    "files", [{"a.gguf": model_bytes("large", 1 << 20)}, Parts(size=1 << 20).files()], ids=["file", "parts"]
)
async def test_an_engine_gets_the_objects_of_a_folder_themselves(
    sqlite_service: Service, files: dict[str, bytes]
) -> None:
    first, *_ = [import_file(sqlite_service, name, data) for name, data in files.items()]
    assert (await sqlite_service.fetched("m1", first)).state == pb.DOWNLOAD_STATE_SUCCEEDED
    home = sqlite_service.settings.home
    before = written(home, os.getpid())
    located = await sqlite_service.catalogue.LocateModel(pb.LocateModelRequest(model_uuid="m1"))
    objects = {(path.stat().st_dev, path.stat().st_ino) for path in (home / "objects" / "models").iterdir()}
    given = [Path(path).stat() for path in located.file_paths]
    assert [about.st_size for about in given] == [len(data) for data in files.values()]
    assert {(about.st_dev, about.st_ino) for about in given} == objects
    assert written(home, os.getpid()) - before < min(map(len, files.values()))
