"""Full disks, dead writers, damaged copies and refusing servers end in the store's own words, with nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web
from minio.error import S3Error

from llamesh.kit.objects import (
    DirectoryStore,
    ObjectDamagedError,
    ObjectNotFoundError,
    StoreDeniedError,
    StoreFullError,
    StoreUnavailableError,
    object_key,
    put,
)
from llamesh.kit.objects.s3 import S3Store
from llamesh.kit.objects.s3_errors import S3Errors
from llamesh.kit.objects.staging import StagingFile
from tests.unit.fake_s3 import FakeS3, fake_s3
from tests.unit.loopback import ALL_PATHS, serving

CONTENT = b"model" * 100_000
KEY = object_key("models", hashlib.sha256(CONTENT).hexdigest(), ".gguf")


async def chunks(data: bytes = CONTENT) -> AsyncIterator[bytes]:
    yield data


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def failing_with(code: int) -> object:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_fills_up_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = DirectoryStore(tmp_path)
    monkeypatch.setattr("llamesh.kit.objects.staging.os.write", failing_with(code))
    with pytest.raises(StoreFullError, match="cannot write to the object store"):
        await store.stage(chunks())
    assert files(tmp_path) == []


async def test_a_disk_that_fills_up_at_the_end_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path)
    staged = await store.stage(chunks())
    monkeypatch.setattr("llamesh.kit.objects.staging.os.fsync", failing_with(errno.ENOSPC))
    with pytest.raises(StoreFullError):
        await staged.publish(KEY)
    await staged.discard()
    assert files(tmp_path) == []


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


async def test_models_on_another_file_system_are_denied_before_bytes_move(tmp_path: Path, elsewhere: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.check()
    (tmp_path / "models").symlink_to(elsewhere)
    for look in (store.prepare, store.check, store.prepare):
        with pytest.raises(StoreDeniedError, match=f"{tmp_path}/models is on another file system"):
            await look()


async def test_a_publication_to_another_file_system_is_denied(tmp_path: Path, elsewhere: Path) -> None:
    store = DirectoryStore(tmp_path)
    staged = await store.stage(chunks())
    (tmp_path / "models").symlink_to(elsewhere)
    with pytest.raises(StoreDeniedError, match="cannot publish"):
        await staged.publish(KEY)
    await staged.discard()
    assert files(tmp_path) == []


async def test_a_store_that_is_on_one_other_file_system_is_usable(tmp_path: Path, elsewhere: Path) -> None:
    for name in ("staging", "models"):
        (elsewhere / name).mkdir()
        (tmp_path / name).symlink_to(elsewhere / name)
    (tmp_path / "backup").mkdir()
    store = DirectoryStore(tmp_path)
    await store.prepare()
    await store.check()
    await put(store, KEY, chunks())


async def test_an_object_larger_than_the_free_space_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(StoreFullError, match=rf"needs {1 << 60} bytes and .* has \d+ bytes free"):
        await DirectoryStore(tmp_path).stage(chunks(), expected_size=1 << 60)


async def test_a_directory_that_cannot_be_made_is_denied_or_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailableError, match="cannot use"):
        await DirectoryStore(tmp_path / "file").prepare()


async def test_the_room_of_a_directory_is_told_before_it_exists_and_without_making_it(tmp_path: Path) -> None:
    space = await DirectoryStore(tmp_path / "deep" / "objects").space()
    assert space is not None
    assert 0 < space.free <= space.total
    assert files(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


async def test_files_of_dead_writers_are_swept_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    """A writer killed with -9 cannot clean up; its lock is gone with it."""
    program = (
        "import sys, time; from pathlib import Path; from llamesh.kit.objects.staging import StagingFile;"
        "StagingFile(Path(sys.argv[1])).write(b'half'); print('ready', flush=True); time.sleep(60)"
    )
    program = program.replace("StagingFile(Path", "f = StagingFile(Path").replace(").write", "); f.write")
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "staging")], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert writer.stdout is not None
    with writer.stdout:
        writer.stdout.readline()
        mine = StagingFile(tmp_path / "staging")
        store = DirectoryStore(tmp_path)
        await store.prepare()
        assert len(files(tmp_path)) == 2
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    await store.prepare()
    assert files(tmp_path) == [mine.path]
    mine.discard()


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture
async def remote(s3: FakeS3, tmp_path: Path) -> AsyncIterator[S3Store]:
    made = S3Store(s3.place(), tmp_path / "cache")
    await made.prepare()
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("XMinioStorageFull", StoreFullError),
        ("QuotaExceeded", StoreFullError),
        ("AccessDenied", StoreDeniedError),
        ("SignatureDoesNotMatch", StoreDeniedError),
        ("XAdminUserNotFound", StoreDeniedError),
        ("NoSuchBucket", ObjectNotFoundError),
        ("InternalError", StoreUnavailableError),
    ],
)
async def test_a_server_that_refuses_is_understood(
    s3: FakeS3, remote: S3Store, code: str, error: type[Exception]
) -> None:
    s3.refuse["PUT"] = (403, code)
    with pytest.raises(error, match=code):
        await remote.stage(chunks())


async def test_a_server_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    with fake_s3() as server:
        place = server.place()
    store = S3Store(place, tmp_path)
    with pytest.raises(StoreUnavailableError, match="cannot look up"):
        await store.stat(KEY)
    await store.close()


@pytest.mark.parametrize("name", ["minio..svc", "a" * 64 + ".svc"])
async def test_an_endpoint_whose_name_is_malformed_is_unavailable(s3: FakeS3, tmp_path: Path, name: str) -> None:
    store = S3Store(s3.place().model_copy(update={"endpoint": f"{name}:9000"}), tmp_path)
    with pytest.raises(StoreUnavailableError, match="has a name that cannot be resolved: check MINIO_ENDPOINT"):
        await store.check()
    await store.close()


async def test_a_bucket_whose_name_is_malformed_is_denied(s3: FakeS3, tmp_path: Path) -> None:
    store = S3Store(s3.place().model_copy(update={"bucket": "A bucket"}), tmp_path)
    with pytest.raises(StoreDeniedError, match="check MINIO_BUCKET"):
        await store.check()
    await store.close()


async def test_an_error_page_in_another_encoding_is_not_from_an_s3_server(s3: FakeS3, tmp_path: Path) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=404, body="introuvable à jamais".encode("latin-1"), content_type="text/html")

    async with serving({ALL_PATHS: refuse}) as address:
        store = S3Store(s3.place().model_copy(update={"endpoint": address}), tmp_path)
        with pytest.raises(StoreUnavailableError, match="the server at MINIO_ENDPOINT is not an S3 server"):
            await store.check()
        await store.close()


async def test_large_objects_go_up_in_parts(s3: FakeS3, remote: S3Store) -> None:
    big = os.urandom(1 << 20) * 40
    key = object_key("models", hashlib.sha256(big).hexdigest())
    await put(remote, key, chunks(big))
    assert s3.objects == {key: big}
    parts = [path for method, path in s3.requests if method == "PUT" and "partNumber" in path]
    assert len(parts) == 3


async def test_a_part_that_fails_aborts_the_upload(s3: FakeS3, remote: S3Store) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield bytes(40 << 20)
        s3.refuse["PUT"] = (403, "XMinioStorageFull")
        yield bytes(40 << 20)

    with pytest.raises(StoreFullError):
        await remote.stage(failing())
    assert (s3.objects, s3.uploads) == ({}, {})


async def test_a_damaged_download_never_becomes_a_local_file(s3: FakeS3, remote: S3Store, tmp_path: Path) -> None:
    await put(remote, KEY, chunks())
    s3.objects[KEY] = CONTENT[:-1] + b"X"
    with pytest.raises(ObjectDamagedError, match="is damaged: its bytes have SHA-256"):
        await remote.local_path(KEY)
    assert files(tmp_path) == []
    s3.objects[KEY] = CONTENT
    assert (await remote.local_path(KEY)).read_bytes() == CONTENT


async def test_concurrent_requests_for_a_local_file_cause_one_download(s3: FakeS3, remote: S3Store) -> None:
    await put(remote, KEY, chunks())
    s3.requests.clear()
    await asyncio.gather(*(remote.local_path(KEY) for _ in range(20)))
    asked = [method for method, path in s3.requests if "location" not in path]
    assert asked == ["HEAD", "GET"]
    await remote.local_path(KEY)
    assert [method for method, path in s3.requests if "location" not in path] == asked


async def test_a_delete_in_one_bucket_leaves_the_copy_that_another_bucket_shares(
    s3: FakeS3, remote: S3Store, tmp_path: Path
) -> None:
    await put(remote, KEY, chunks())
    path = await remote.local_path(KEY)
    other = S3Store(s3.place().model_copy(update={"bucket": "variants"}), tmp_path / "cache")
    await other.prepare()
    await other.delete(KEY)
    assert path.read_bytes() == CONTENT
    await other.close()


async def test_a_cancelled_waiter_does_not_stop_the_download_for_others(remote: S3Store) -> None:
    await put(remote, KEY, chunks())
    first, second = (asyncio.create_task(remote.local_path(KEY)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).read_bytes() == CONTENT


async def test_a_missing_bucket_is_created(s3: FakeS3, remote: S3Store) -> None:
    assert s3.buckets == {"models"}


def test_what_an_s3_server_says_is_short_and_printable() -> None:
    said = "\x1b[2J\u202e" + "a" * 5000
    with pytest.raises(StoreUnavailableError) as caught, S3Errors("MINIO_", "MINIO_BUCKET")("cannot read x"):
        raise S3Error(cast("Any", None), said, said, None, None, None)
    words = str(caught.value)
    assert words.isprintable()
    assert len(words) < 500
