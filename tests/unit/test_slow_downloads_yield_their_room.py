"""A reservation of room holds others only as long as its download can end within a day at its pace."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from llamesh.kit.objects import DirectoryStore, StoreFullError
from services.download.paces import MAX_HOLD_SECONDS, WINDOW_SECONDS, Pace, yielding
from services.download.retry_backoffs import RetryBackoffs
from services.download.room import Room, RoomTakenError
from services.download.tables import TransferRow

DISK = 1 << 40
SLOW, QUICK, NEXT = (TransferRow(model_uuid=name, attempt=1) for name in ("slow", "quick", "next"))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def room(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    found = DiskSpace(RESERVE_BYTES + DISK, 1 << 50)
    monkeypatch.setattr("llamesh.kit.objects.directory.disk_space", lambda _: found)
    return Room(DirectoryStore(tmp_path), None, RetryBackoffs(clock))


def test_the_pace_is_known_after_a_window_and_follows_the_last_two(clock: Clock) -> None:
    pace = Pace(clock)
    clock.now += WINDOW_SECONDS - 1
    assert pace.ends_in_time(DISK)
    clock.now += 1
    assert not pace.ends_in_time(1), "nothing has come"
    pace.add(1000)
    clock.now += WINDOW_SECONDS
    assert pace.ends_in_time(int(1000 * MAX_HOLD_SECONDS / WINDOW_SECONDS))
    assert not pace.ends_in_time(int(1000 * MAX_HOLD_SECONDS / WINDOW_SECONDS) + 1)
    clock.now += WINDOW_SECONDS
    assert not pace.ends_in_time(1), "nothing has come for a window"


def test_as_few_slow_downloads_as_possible_yield_and_none_in_vain() -> None:
    reserved = {"a": 5, "b": 9, "c": 1, "quick": 100}
    assert yielding(reserved, {"a", "b", "c"}, 9) == ["b"]
    assert yielding(reserved, {"a", "b", "c"}, 14) == ["b", "a"]
    assert yielding(reserved, {"a", "b", "c"}, 16) == []


async def test_a_download_that_is_too_slow_yields_its_room_to_one_that_needs_it(room: Room, clock: Clock) -> None:
    await room.reserve(SLOW, DISK)
    with pytest.raises(RoomTakenError, match=f"other downloads need, {DISK} that of slow"):
        await room.reserve(NEXT, DISK // 2)
    for _ in range(20):
        clock.now += 60
        room.use("slow", 60 * 1024)
    await room.reserve(NEXT, DISK // 2)
    with pytest.raises(
        RoomTakenError, match="too slowly to end within 24 hours, so the download of next has got its room"
    ):
        room.use("slow", 1024)
    # Its next try waits like any other, and begins again once there is room.
    room.release("slow")
    with pytest.raises(RoomTakenError, match=f"{DISK // 2} that of next"):
        await room.reserve(SLOW, DISK)
    room.release("next")
    await room.reserve(SLOW, DISK)
    room.use("slow", 1024)


async def test_two_slow_downloads_do_not_take_the_room_from_each_other(room: Room, clock: Clock) -> None:
    await room.reserve(SLOW, DISK)
    clock.now += 2 * WINDOW_SECONDS
    room.use("slow", 1)
    clock.now += WINDOW_SECONDS
    await room.reserve(NEXT, DISK)
    room.release("slow")
    for _ in range(3):
        clock.now += WINDOW_SECONDS
        room.use("next", 1)
    with pytest.raises(RoomTakenError, match="that of next"):
        await room.reserve(SLOW, DISK)
    room.use("next", 1)
    await room.reserve(QUICK, DISK)
    with pytest.raises(RoomTakenError, match="the download of quick has got its room"):
        room.use("next", 1)


async def test_a_download_that_ends_within_a_day_or_is_in_nobodys_way_keeps_its_room(room: Room, clock: Clock) -> None:
    await room.reserve(QUICK, DISK // 2)
    await room.reserve(SLOW, DISK // 4)
    for _ in range(20):
        clock.now += 60
        room.use("quick", DISK // 1000)
    await room.reserve(NEXT, DISK // 4)
    room.use("slow", 1)
    room.release("next")
    with pytest.raises(RoomTakenError, match="that of quick"):
        await room.reserve(NEXT, DISK - DISK // 10)
    with pytest.raises(StoreFullError):
        await room.reserve(NEXT, DISK + 1)
    room.use("slow", 1)
