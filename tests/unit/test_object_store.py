"""What every object store promises, on a directory and behind S3: invisible until published, whole, and gone when discarded."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llamesh.kit.objects import (
    DirectoryStore,
    ObjectNotFoundError,
    ObjectStore,
    object_key,
    object_store,
    put,
)
from llamesh.kit.objects.s3 import S3Store
from tests.unit.fake_s3 import FakeS3, fake_s3

CONTENT = os.urandom(3_500_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
KEY = object_key("models", DIGEST, ".gguf")


async def chunks(data: bytes = CONTENT, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def keys(store: ObjectStore) -> list[str]:
    return [info.key async for info in store.scan()]


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture(params=["directory", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    if request.param == "directory":
        made = object_store(tmp_path / "objects", cache_directory=tmp_path / "cache")
        assert isinstance(made, DirectoryStore)
    else:
        server: FakeS3 = request.getfixturevalue("s3")
        made = object_store(tmp_path / "objects", server.place(), cache_directory=tmp_path / "cache")
        assert isinstance(made, S3Store)
    await made.prepare()
    yield made
    await made.close()


async def test_staged_bytes_are_readable_and_invisible_until_published(store: ObjectStore) -> None:
    staged = await store.stage(chunks(), expected_size=len(CONTENT))
    assert (staged.size, staged.sha256) == (len(CONTENT), DIGEST)
    with await asyncio.to_thread(staged.open) as file:
        assert await asyncio.to_thread(file.read) == CONTENT
        file.seek(-10, os.SEEK_END)
        assert await asyncio.to_thread(file.read) == CONTENT[-10:]
    assert await keys(store) == []
    with pytest.raises(ObjectNotFoundError):
        await store.stat(KEY)
    info = await staged.publish(KEY)
    await staged.discard()
    assert (info.key, info.size) == (KEY, len(CONTENT))
    assert await keys(store) == [KEY]
    assert await store.stat(KEY) == info


async def test_a_discarded_upload_leaves_nothing(
    store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    staged = await store.stage(chunks())
    await staged.discard()
    await staged.discard()
    assert await keys(store) == []
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    if isinstance(store, S3Store):
        assert request.getfixturevalue("s3").objects == {}


class SourceGoneError(Exception):
    pass


async def test_a_source_that_fails_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    async def failing() -> AsyncIterator[bytes]:
        async for chunk in chunks():
            yield chunk
        raise SourceGoneError

    with pytest.raises(SourceGoneError):
        await store.stage(failing())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


async def test_a_cancelled_write_leaves_nothing(
    store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield CONTENT
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.stage(endless()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    if isinstance(store, S3Store):
        server: FakeS3 = request.getfixturevalue("s3")
        assert (server.objects, server.uploads) == ({}, {})


async def test_a_write_cancelled_at_any_moment_leaves_nothing(store: ObjectStore, tmp_path: Path) -> None:
    for moment in range(40):
        task = asyncio.create_task(store.stage(chunks(CONTENT[:200_000])))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await task).discard()
        assert not [path for path in tmp_path.rglob("*") if path.is_file()], moment


async def test_read_gives_any_range(store: ObjectStore) -> None:
    await put(store, KEY, chunks())
    for offset, length in ((0, None), (0, 0), (1, 5), (1_048_570, 100), (3_499_999, None), (3_400_000, 10**9)):
        got = b"".join([chunk async for chunk in store.read(KEY, offset=offset, length=length)])
        assert got == CONTENT[offset : len(CONTENT) if length is None else offset + length]


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    key = object_key("models", hashlib.sha256(b"").hexdigest())
    assert (await put(store, key, chunks(b""))).size == 0
    assert await keys(store) == [key]


async def test_put_refuses_content_that_is_not_the_keys(store: ObjectStore) -> None:
    with pytest.raises(ValueError, match=DIGEST):
        await put(store, object_key("models", "0" * 64), chunks())
    assert await keys(store) == []


async def test_publishing_the_same_content_again_is_harmless(store: ObjectStore) -> None:
    await put(store, KEY, chunks())
    await put(store, KEY, chunks())
    assert await keys(store) == [KEY]


async def test_delete_is_idempotent(store: ObjectStore) -> None:
    await put(store, KEY, chunks())
    await store.delete(KEY)
    await store.delete(KEY)
    assert await keys(store) == []
    with pytest.raises(ObjectNotFoundError):
        await store.stat(KEY)
    with pytest.raises(ObjectNotFoundError):
        await asyncio.to_thread(store.open, KEY)
    with pytest.raises(ObjectNotFoundError):
        async for _ in store.read(KEY):
            pass
    with pytest.raises(ObjectNotFoundError):
        await store.local_path(KEY)


async def test_a_local_path_is_a_file_with_the_bytes(store: ObjectStore) -> None:
    await put(store, KEY, chunks())
    paths = await asyncio.gather(*(store.local_path(KEY) for _ in range(10)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == CONTENT


async def test_scan_finds_by_prefix_in_order(store: ObjectStore) -> None:
    made = []
    for kind in ("models", "adapters"):
        for text in (b"a", b"b", b"c"):
            made.append(object_key(kind, hashlib.sha256(text).hexdigest(), ".gguf"))
            await put(store, made[-1], chunks(text))
    assert await keys(store) == sorted(made)
    assert [info.key async for info in store.scan("adapters/")] == sorted(made)[:3]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "models",
        "models/",
        "../models/" + "0" * 64,
        "models/../" + "0" * 64,
        "models/" + "0" * 64 + "/x",
        "/models/" + "0" * 64,
        "models/" + "0" * 63,
        "models/" + "A" * 64,
        "models/" + "0" * 64 + "\n",
        "models/" + "0" * 64 + "\0",
        "models/" + "0" * 64 + "..",
        "models/" + "0" * 64 + ".gguf.exe",
        "modèles/" + "0" * 64,
        "models/" + "０" * 64,
        "Models/" + "0" * 64,
        "staging/" + "0" * 32 + ".part",
    ],
)
async def test_only_generated_keys_reach_a_store(store: ObjectStore, key: str) -> None:
    staged = await store.stage(chunks(b"x"))
    with pytest.raises(ValueError, match="not an object key"):
        await staged.publish(key)
    await staged.discard()
    for call in (store.stat, store.delete, store.local_path):
        with pytest.raises(ValueError, match="not an object key"):
            await call(key)
    with pytest.raises(ValueError, match="not an object key"):
        store.open(key)
    assert await keys(store) == []
