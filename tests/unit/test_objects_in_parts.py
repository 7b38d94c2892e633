"""An object that is written in parts has the bytes and the hash of the whole, whatever the order, and survives its writer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llamesh.kit.objects import (
    ObjectNotFoundError,
    ObjectStore,
    PartedObject,
    PartLayout,
    StoreError,
    object_store,
    s3_parts,
)
from tests.unit.fake_s3 import FakeS3, fake_s3
from tests.unit.objects_in_parts import CONTENT, DIGEST, KEY, NAME, PART, Place, chunks, created, write


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture(params=["directory", "s3"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ObjectStore]:
    monkeypatch.setattr(s3_parts, "MIN_PART_BYTES", 1)
    if request.param == "directory":
        made = object_store(tmp_path / "objects", cache_directory=tmp_path / "cache")
    else:
        server: FakeS3 = request.getfixturevalue("s3")
        made = object_store(tmp_path / "objects", server.place(), cache_directory=tmp_path / "cache")
    await made.prepare()
    yield made
    await made.close()


@pytest.fixture
async def place(store: ObjectStore) -> AsyncIterator[Place]:
    """An object without any part. After the test it is removed, and nothing is left in the store but what the test published."""
    made = await created(store)
    yield made
    await made.remove()
    await store.delete(KEY)


@pytest.fixture
async def parted(place: Place) -> AsyncIterator[PartedObject]:
    opened = await place.open()
    yield opened
    await opened.close()


def left(tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    """What is in the store."""
    if (tmp_path / "objects").exists():
        return [path.name for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    server: FakeS3 = request.getfixturevalue("s3")
    return [*server.objects, *server.uploads]


@pytest.mark.parametrize(("size", "spans"), [(0, []), (1, [(0, 1)]), (10, [(0, 10)]), (11, [(0, 10), (10, 1)])])
def test_parts_cover_the_object_once(size: int, spans: list[tuple[int, int]]) -> None:
    layout = PartLayout(size, 10)
    assert [layout.span(number) for number in layout.missing({})] == spans
    assert layout.bytes_of(dict.fromkeys(range(1, layout.count + 1), "")) == size


@pytest.mark.parametrize("seed", range(5))
async def test_parts_in_any_order_and_at_the_same_time_are_the_object(
    store: ObjectStore, parted: PartedObject, seed: int
) -> None:
    numbers = list(parted.layout.missing({}))
    random.Random(seed).shuffle(numbers)
    await asyncio.gather(*(write(parted, number) for number in numbers))
    whole = await parted.finish()
    assert (whole.size, whole.sha256) == (len(CONTENT), DIGEST)
    with await asyncio.to_thread(whole.open) as file:
        assert await asyncio.to_thread(file.read) == CONTENT
    assert [info.key async for info in store.scan()] == []
    assert (await whole.publish(KEY)).size == len(CONTENT)
    assert (await store.local_path(KEY)).read_bytes() == CONTENT


async def test_the_bytes_are_kept_until_they_are_removed(
    store: ObjectStore, place: Place, parted: PartedObject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A process that is killed before it has recorded the published object needs the staged bytes again."""
    await write(parted, 1, 2, 3, 4, 5, 6)
    whole = await parted.finish()
    await whole.publish(KEY)
    await whole.discard()
    await store.delete(KEY)
    again = await place.open(parted.done)
    assert list(again.layout.missing(again.done)) == []
    whole = await again.finish()
    assert ((await whole.publish(KEY)).size, whole.sha256) == (len(CONTENT), DIGEST)
    await again.close()
    for _ in range(2):
        await place.remove()
    assert (await store.local_path(KEY)).read_bytes() == CONTENT
    await store.delete(KEY)
    assert left(tmp_path, request) == []


async def test_the_next_writer_writes_what_is_missing(store: ObjectStore, place: Place, parted: PartedObject) -> None:
    for number in (2, 1, 4):
        offset, length = parted.layout.span(number)
        parted.done[number] = await parted.write(number, chunks(CONTENT[offset : offset + length]))
    await parted.close()
    await store.prepare()
    again = await place.open(parted.done)
    missing = list(again.layout.missing(again.done))
    assert missing == [3, 5, 6]
    await write(again, *missing)
    whole = await again.finish()
    assert whole.sha256 == DIGEST
    await whole.publish(KEY)
    assert (await store.local_path(KEY)).read_bytes() == CONTENT
    await again.close()


async def test_a_part_may_be_written_again(place: Place, parted: PartedObject) -> None:
    await parted.write(1, chunks(bytes(PART)))
    await parted.close()
    again = await place.open()
    await write(again, 1, 2, 3, 4, 5, 6)
    assert (await again.finish()).sha256 == DIGEST
    await again.close()


async def test_a_part_with_more_bytes_than_its_own_spoils_no_other(parted: PartedObject) -> None:
    offset, length = parted.layout.span(2)
    await parted.write(2, chunks(CONTENT[offset : offset + length]))
    with pytest.raises(StoreError, match=f"part 1 has more than {PART} bytes"):
        await parted.write(1, chunks(bytes(PART + 1)))
    await write(parted, 1)
    await parted.written(2)
    await write(parted, 3, 4, 5, 6)
    assert (await parted.finish()).sha256 == DIGEST


async def test_an_object_that_lacks_a_part_is_not_finished(parted: PartedObject) -> None:
    await write(parted, 1)
    with pytest.raises(StoreError, match="of 6 parts are"):
        await parted.finish()
    with pytest.raises(StoreError, match="part 2"):
        await parted.write(2, chunks(b"short"))


async def test_an_object_that_was_removed_is_not_found(place: Place, parted: PartedObject) -> None:
    await write(parted, 1)
    await parted.close()
    await place.remove()
    with pytest.raises(ObjectNotFoundError):
        await place.open(parted.done)


async def test_a_removed_object_leaves_nothing_at_any_stage(
    place: Place, parted: PartedObject, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    await write(parted, 1, 2)
    await parted.close()
    # As after a process that died before it could record the id of the upload.
    await place.parts.remove(NAME, "")
    assert left(tmp_path, request) == []
