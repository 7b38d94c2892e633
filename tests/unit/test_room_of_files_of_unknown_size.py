"""A file of unknown size that found no room beside other downloads is not fetched again before its bytes have room."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from llamesh.kit.objects import DirectoryStore, StoreFullError
from services.download.retry_backoffs import RetryBackoffs, attempt_of
from services.download.room import STEP_BYTES, FileRoom, Room, RoomTakenError
from services.download.tables import TransferRow

CHUNK = 1 << 20
FITTING = 4 * STEP_BYTES
"""Bytes for which there is room beside the other download."""
OTHER = TransferRow(model_uuid="other", attempt=1)
ROW = TransferRow(model_uuid="m", attempt=1)


class Disk:
    """FAKE: a disk with `usable` bytes for models."""

    def __init__(self) -> None:
        self.usable = 2 * FITTING

    def space(self, _: Path) -> DiskSpace:
        return DiskSpace(RESERVE_BYTES + self.usable, 1 << 40)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    monkeypatch.setattr("llamesh.kit.objects.directory.disk_space", found.space)
    return found


@pytest.fixture
def waits() -> RetryBackoffs:
    return RetryBackoffs(lambda: 0.0)


@pytest.fixture
async def room(tmp_path: Path, disk: Disk, waits: RetryBackoffs) -> Room:
    """Another download has reserved half of the disk."""
    room = Room(DirectoryStore(tmp_path), None, waits)
    await room.reserve(OTHER, FITTING)
    return room


async def fetch(room: Room, disk: Disk, size: int, *, known: int | None = None) -> int:
    """Fetch a model with a file of `size` bytes that nobody knows, and a file of `known` bytes. Return the bytes that came."""
    usable, came = disk.usable, 0
    try:
        if known is not None:
            await room.reserve(ROW, known)
        file = FileRoom(room, ROW, None, reserved=known is not None)
        for _ in range(0, size, CHUNK):
            await file.take(CHUNK)
            came += CHUNK
            disk.usable -= CHUNK
            room.use(ROW.model_uuid, CHUNK)
    except RoomTakenError:
        pass
    finally:
        disk.usable = usable
        room.release(ROW.model_uuid)
    return came


@pytest.mark.parametrize("known", [None, 0, STEP_BYTES])
async def test_a_further_try_gets_no_bytes_before_the_room_that_the_last_one_lacked(
    room: Room, disk: Disk, known: int | None
) -> None:
    size = FITTING + CHUNK
    assert await fetch(room, disk, size, known=known) == FITTING - (known or 0)
    assert [await fetch(room, disk, size, known=known) for _ in range(3)] == [0, 0, 0]
    room.release(OTHER.model_uuid)
    assert await fetch(room, disk, size, known=known) == size


async def test_a_further_try_begins_once_a_model_was_removed(room: Room, disk: Disk) -> None:
    size = FITTING + CHUNK
    await fetch(room, disk, size)
    disk.usable += STEP_BYTES
    assert await fetch(room, disk, size) == size


async def test_a_further_try_fails_if_the_bytes_do_not_fit_alone(room: Room, disk: Disk) -> None:
    await fetch(room, disk, FITTING + CHUNK)
    room.release(OTHER.model_uuid)
    disk.usable = FITTING
    with pytest.raises(StoreFullError):
        await fetch(room, disk, FITTING + CHUNK)


async def test_what_an_attempt_needed_is_forgotten_with_it(room: Room, disk: Disk, waits: RetryBackoffs) -> None:
    await fetch(room, disk, FITTING + CHUNK)
    assert attempt_of(ROW) in waits.attempts()
    waits.forget(attempt_of(ROW))
    assert waits.attempts() == set()
    assert await fetch(room, disk, CHUNK) == CHUNK
