"""What a killed writer has staged in S3 is found and removed, an unfinished upload too, and nothing that a living writer needs.

The server finds uploads by their whole name only, as MinIO does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from llamesh.kit.objects import StoreUnavailableError, object_key
from llamesh.kit.objects.s3 import MIN_KEPT, S3Store
from services.quant.variants import Variants
from tests.unit.fake_s3 import TIME, FakeS3, fake_s3

LARGE = 40 << 20
KEY = object_key("models", hashlib.sha256(b"x").hexdigest(), ".gguf")

MakeStore = Callable[..., S3Store]


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        server.buckets.add("models")
        yield server


@pytest.fixture
async def new_store(s3: FakeS3, tmp_path: Path) -> AsyncIterator[MakeStore]:
    """Makes the store of a process, which is `writer`, at a time."""
    async with contextlib.AsyncExitStack() as stack:

        def new(writer: str = "", age: timedelta = timedelta()) -> S3Store:
            made = S3Store(s3.place(), tmp_path, clock=lambda: TIME + age, writer=writer)
            stack.push_async_callback(made.close)
            return made

        yield new


async def chunks(size: int = LARGE) -> AsyncIterator[bytes]:
    for at in range(0, size, 1 << 20):
        yield bytes(min(1 << 20, size - at))


@contextlib.asynccontextmanager
async def writing(store: S3Store) -> AsyncIterator[asyncio.Task[Any]]:
    """A large object on its way while the block runs. What a block sees is what a kill would leave."""
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        async for chunk in chunks():
            yield chunk
        waiting.set()
        await asyncio.Event().wait()

    task: asyncio.Task[Any] = asyncio.create_task(store.stage(endless()))
    await waiting.wait()
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_next_process_of_a_writer_removes_the_upload_that_a_kill_has_left(
    s3: FakeS3, new_store: MakeStore
) -> None:
    async with writing(new_store("quant")):
        assert (len(s3.uploads), list(s3.objects.values())) == (1, [b""])
        await new_store("quant").prepare()
        assert (s3.uploads, s3.objects) == ({}, {})


async def test_the_next_process_of_a_writer_removes_a_whole_object(s3: FakeS3, new_store: MakeStore) -> None:
    await new_store("download").stage(chunks())
    await new_store("download").sweep()
    assert s3.objects == {}


async def test_a_sweep_leaves_what_this_process_writes_or_has_not_discarded(s3: FakeS3, new_store: MakeStore) -> None:
    store = new_store("download", MIN_KEPT + timedelta(days=100))
    staged = await store.stage(chunks())
    async with writing(store):
        await store.sweep()
        assert (len(s3.uploads), len(s3.objects)) == (1, 2)
    await staged.publish(object_key("models", staged.sha256, ".gguf"))
    await staged.discard()
    assert [key.partition("/")[0] for key in s3.objects] == ["models"]


@pytest.mark.parametrize("writer", ["", "other"])
async def test_what_another_writer_has_left_goes_a_week_after_its_last_write(
    s3: FakeS3, new_store: MakeStore, writer: str
) -> None:
    async with writing(new_store(writer)):
        await new_store("download").stage(chunks(10))
        s3.part_time = TIME + timedelta(days=3)
        await new_store(age=timedelta(days=6)).sweep()
        assert (len(s3.uploads), len(s3.objects)) == (1, 2)
        await new_store(age=timedelta(days=9)).sweep()
        assert (len(s3.uploads), len(s3.objects)) == (1, 1)
        await new_store(age=timedelta(days=11)).sweep()
        assert (s3.uploads, s3.objects) == ({}, {})


async def test_uploads_and_objects_in_parts_are_left_to_their_records(s3: FakeS3, new_store: MakeStore) -> None:
    store = new_store("download", timedelta(days=100))
    await store.parts.create("1" * 32, store.parts.layout(LARGE, 16 << 20))
    s3.objects["staging/2.parts"] = b"x"
    await store.sweep()
    assert (len(s3.uploads), list(s3.objects)) == (1, ["staging/2.parts"])


async def test_a_cancelled_write_whose_removal_fails_is_removed_by_the_next_sweep(
    s3: FakeS3, new_store: MakeStore
) -> None:
    store = new_store("download")
    async with writing(store) as task:
        s3.refuse["DELETE"] = (403, "AccessDenied")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (len(s3.uploads), len(s3.objects)) == (1, 1)
    s3.refuse.clear()
    await store.sweep()
    assert (s3.uploads, s3.objects) == ({}, {})


class _Owned:
    """FAKE: a database whose owner is this process."""

    @contextlib.asynccontextmanager
    async def owned(self) -> AsyncIterator[None]:
        yield


async def test_what_a_cancelled_publication_of_quant_has_left_goes_with_its_object(
    s3: FakeS3, new_store: MakeStore
) -> None:
    async with writing(new_store(KEY)):
        s3.objects[KEY] = b"x"
        await Variants(cast("Any", _Owned()), new_store()).remove_object(KEY)
        assert (s3.uploads, s3.objects) == ({}, {})


async def test_a_bucket_that_nobody_has_made_has_nothing_to_sweep(s3: FakeS3, new_store: MakeStore) -> None:
    s3.buckets.clear()
    await new_store().sweep()
    assert s3.buckets == set()
    s3.refuse["GET"] = (503, "SlowDown")
    with pytest.raises(StoreUnavailableError):
        await new_store().sweep()


async def test_an_error_of_the_source_stays_its_own(s3: FakeS3, new_store: MakeStore) -> None:
    async def failing() -> AsyncIterator[bytes]:
        async for chunk in chunks():
            yield chunk
        raise ValueError("of the source")

    with pytest.raises(ValueError, match="of the source"):
        await new_store().stage(failing())
    assert (s3.uploads, s3.objects) == ({}, {})


async def test_parts_join_to_the_bytes_at_any_size(s3: FakeS3, new_store: MakeStore) -> None:
    for size in (0, (16 << 20) - 1, 16 << 20, (16 << 20) + 1, 32 << 20, LARGE + 5):
        staged = await new_store().stage(chunks(size))
        assert (staged.size, staged.sha256) == (size, hashlib.sha256(bytes(size)).hexdigest())
        assert list(map(len, s3.objects.values())) == [size]
        await staged.discard()
