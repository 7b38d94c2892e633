"""An object that is written in parts has the bytes and the hash of the whole, whatever the order, and survives its writer."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llamesh.kit.objects import (
    DirectoryStore,
    ObjectNotFoundError,
    PartedObject,
    PartedObjects,
    PartLayout,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    object_key,
)

PART = 64 << 10
CONTENT = random.Random(1).randbytes(5 * PART + 777)
KEY = object_key("models", hashlib.sha256(CONTENT).hexdigest(), ".gguf")
NAME = "0" * 32


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 10_000):
        await asyncio.sleep(0)
        yield data[at : at + 10_000]


async def write(parted: PartedObject, *numbers: int) -> None:
    for number in numbers:
        offset, length = parted.layout.span(number)
        await parted.write(number, chunks(CONTENT[offset : offset + length]))
        await parted.written(number)


@pytest.fixture
async def store(tmp_path: Path) -> DirectoryStore:
    made = DirectoryStore(tmp_path)
    await made.prepare()
    return made


@pytest.fixture
def parts(store: DirectoryStore) -> PartedObjects:
    return store.parts


@pytest.fixture
async def parted(parts: PartedObjects) -> AsyncIterator[PartedObject]:
    layout = parts.layout(len(CONTENT), PART)
    opened = await parts.open(NAME, await parts.create(NAME, layout), layout, {})
    yield opened
    await opened.close()


def staged(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "staging").iterdir())


@pytest.mark.parametrize(("size", "spans"), [(0, []), (1, [(0, 1)]), (10, [(0, 10)]), (11, [(0, 10), (10, 1)])])
def test_parts_cover_the_object_once(size: int, spans: list[tuple[int, int]]) -> None:
    layout = PartLayout(size, 10)
    assert [layout.span(number) for number in layout.missing({})] == spans
    assert layout.bytes_of(dict.fromkeys(range(1, layout.count + 1), "")) == size


@pytest.mark.parametrize("seed", range(5))
async def test_parts_in_any_order_and_at_the_same_time_are_the_object(
    store: DirectoryStore, parted: PartedObject, tmp_path: Path, seed: int
) -> None:
    numbers = list(parted.layout.missing({}))
    random.Random(seed).shuffle(numbers)
    await asyncio.gather(*(write(parted, number) for number in numbers))
    whole = await parted.finish()
    assert (whole.size, whole.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    with whole.open() as file:
        assert file.read() == CONTENT
    assert [info.key async for info in store.scan()] == []
    assert (await whole.publish(KEY)).size == len(CONTENT)
    assert (await store.local_path(KEY)).read_bytes() == CONTENT


async def test_the_bytes_are_kept_until_they_are_removed(
    store: DirectoryStore, parts: PartedObjects, parted: PartedObject, tmp_path: Path
) -> None:
    """A process that is killed before it has recorded the published object needs the staged bytes again."""
    await write(parted, 1, 2, 3, 4, 5, 6)
    whole = await parted.finish()
    await whole.publish(KEY)
    await whole.discard()
    await store.delete(KEY)
    again = await parts.open(NAME, "", parted.layout, parted.done)
    assert (await (await again.finish()).publish(KEY)).size == len(CONTENT)
    await again.close()
    for _ in range(2):
        await parts.remove(NAME, "")
    assert staged(tmp_path) == []
    assert (await store.local_path(KEY)).read_bytes() == CONTENT


async def test_the_next_writer_writes_what_is_missing(
    store: DirectoryStore, parts: PartedObjects, parted: PartedObject
) -> None:
    await write(parted, 2, 1, 4)
    await parted.close()
    await store.prepare()
    assert [name for name, _ in await parts.found()] == [NAME]
    again = await parts.open(NAME, "", parted.layout, parted.done)
    missing = list(again.layout.missing(again.done))
    assert missing == [3, 5, 6]
    await write(again, *missing)
    assert (await again.finish()).sha256 == hashlib.sha256(CONTENT).hexdigest()
    await again.close()


async def test_a_part_that_is_not_recorded_is_written_again(parts: PartedObjects, parted: PartedObject) -> None:
    await parted.write(1, chunks(bytes(PART)))
    await parted.close()
    again = await parts.open(NAME, "", parted.layout, {})
    await write(again, 1, 2, 3, 4, 5, 6)
    assert (await again.finish()).sha256 == hashlib.sha256(CONTENT).hexdigest()
    await again.close()


async def test_one_writer_at_a_time(parts: PartedObjects, parted: PartedObject) -> None:
    with pytest.raises(StoreUnavailableError, match="another process writes"):
        await parts.open(NAME, "", parted.layout, {})


async def test_an_object_that_lacks_a_part_is_not_finished(parted: PartedObject) -> None:
    await write(parted, 1, 3)
    with pytest.raises(StoreError, match="only 1 of 6 parts"):
        await parted.finish()
    with pytest.raises(StoreError, match="part 2 ends at"):
        await parted.write(2, chunks(b"short"))


async def test_an_object_that_is_gone_or_of_another_size_is_not_found(
    parts: PartedObjects, parted: PartedObject, tmp_path: Path
) -> None:
    await parted.close()
    with pytest.raises(ObjectNotFoundError, match="instead of"):
        await parts.open(NAME, "", PartLayout(len(CONTENT) + 1, PART), {})
    await parts.remove(NAME, "")
    with pytest.raises(ObjectNotFoundError):
        await parts.open(NAME, "", parted.layout, {})


async def test_an_object_without_room_is_refused_before_its_first_byte(parts: PartedObjects, tmp_path: Path) -> None:
    with pytest.raises(StoreFullError, match="bytes free"):
        await parts.create(NAME, PartLayout(1 << 60, 1 << 50))
    assert staged(tmp_path) == []


async def test_a_file_system_without_hard_links_publishes_too(
    store: DirectoryStore, parted: PartedObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    await write(parted, 1, 2, 3, 4, 5, 6)
    await (await parted.finish()).publish(KEY)
    assert (await store.local_path(KEY)).read_bytes() == CONTENT


async def test_a_writer_that_is_cancelled_leaves_no_write_behind(parts: PartedObjects, parted: PartedObject) -> None:
    for moment in range(0, 40, 3):
        task = asyncio.create_task(write(parted, 1))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await parted.close()
    with pytest.raises(StoreError, match="closed"):
        await write(parted, 1)
