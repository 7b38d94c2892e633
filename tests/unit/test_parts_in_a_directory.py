"""Parts in a directory: one file, one writer, no write after the end, and no byte without room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llamesh.kit.objects import (
    DirectoryStore,
    ObjectNotFoundError,
    PartLayout,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from tests.unit.objects_in_parts import CONTENT, KEY, NAME, PART, Place, created, write


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


@pytest.fixture
async def place(store: DirectoryStore) -> Place:
    return await created(store)


async def test_one_writer_at_a_time(place: Place) -> None:
    parted = await place.open()
    with pytest.raises(StoreUnavailableError, match="another process writes"):
        await place.open()
    await parted.close()
    await (await place.open()).close()


async def test_a_file_of_another_size_is_not_the_object(place: Place) -> None:
    with pytest.raises(ObjectNotFoundError, match="instead of"):
        await place.parts.open(NAME, "", PartLayout(len(CONTENT) + 1, PART), {})


async def test_an_object_without_room_is_refused_before_its_first_byte(store: DirectoryStore, tmp_path: Path) -> None:
    with pytest.raises(StoreFullError, match="bytes free"):
        await store.parts.create(NAME, PartLayout(1 << 60, 1 << 50))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_file_system_without_hard_links_publishes_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    parted = await place.open()
    await write(parted, 1, 2, 3, 4, 5, 6)
    whole = await parted.finish()
    await whole.publish(KEY)
    await whole.discard()
    assert (await place.store.local_path(KEY)).read_bytes() == CONTENT


async def test_a_writer_that_is_cancelled_leaves_no_write_behind(place: Place) -> None:
    parted = await place.open()
    for moment in range(0, 40, 3):
        task = asyncio.create_task(write(parted, 1))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await parted.close()
    with pytest.raises(StoreError, match="closed"):
        await write(parted, 1)


async def test_all_files_in_parts_are_found(place: Place) -> None:
    assert await place.parts.found() == [(NAME, "")]
    await place.store.prepare()
    assert await place.parts.found() == [(NAME, "")]
