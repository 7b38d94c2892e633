"""The room of the store for the fetches of this process: each reserves what it will write before it writes.

A fetch reserves once the header of its file is checked, so that a source gets no room for a length that it only claims. A file whose source
gives no length gets its room in steps, while its bytes arrive. If only the reservations of other fetches are missing, the transfer waits
until one of them ends (`retry_backoffs`). Its next try reserves at once what the last one needed in steps: a try that would end at the same
byte costs the header of the file, and not all bytes again.

A reservation holds others only as long as its fetch can end within a day at its pace (`paces`). A slower one has its room until another
fetch needs it, which then gets what is left of it; the slow one ends with RoomTakenError at its next byte, keeps what it has and waits. It
takes room from no other one afterwards: two slow fetches would take it from each other for ever.

The free bytes of the disk shrink as bytes are written, and the reservation of their fetch with them. So two fetches that fit alone and not
together do not both begin. The reservations are in memory, because one process writes to a directory (the lease on the store), and a
process that begins again reserves again. A bucket does not say how much room it has: nothing is reserved there.

Invariant: when a reservation is made, all reservations that hold fit into the usable bytes (`llamesh.disk_space`), but for what other
programs write to the disk.
"""

from __future__ import annotations

import asyncio
from functools import partial

from llamesh.kit.objects import ObjectStore, StoreError, StoreFullError, StoreShortError
from llamesh.kit.outages import until_written
from services.download.paces import MAX_HOLD_SECONDS, Pace, yielding
from services.download.partial_objects import PartialObjects
from services.download.retry_backoffs import RetryBackoffs, TransferAttempt, attempt_of
from services.download.tables import TransferRow

STEP_BYTES = 16 << 20
"""Bytes that are reserved at once for a file of unknown size."""


class RoomTakenError(StoreError):
    """The bytes do not fit beside those that other fetches have reserved, and would fit without them."""


class Room:
    """The reservations, by model. Each end of a reservation ends the waits for room."""

    def __init__(self, store: ObjectStore, objects: PartialObjects | None, waits: RetryBackoffs) -> None:
        self._store = store
        self._objects = objects
        self._waits = waits
        self._reserved: dict[str, int] = {}
        self._rewritten: dict[str, int] = {}
        """Bytes that have a place on the disk and are written again, because no part that has them is recorded."""
        self._stepped: dict[str, int] = {}
        """Bytes that a fetch has reserved for files of unknown size."""
        self._ahead: dict[str, int] = {}
        """Those of them that have not arrived."""
        self._paces: dict[str, Pace] = {}
        """How fast each fetch with a reservation writes."""
        self._taken: dict[str, str] = {}
        """Slow fetches whose room another one has got, with the model of that one."""
        self._attempts: dict[str, TransferAttempt] = {}
        """The attempt of each fetch with a reservation."""
        self._reserving = asyncio.Lock()

    async def reserve(self, row: TransferRow, size: int) -> None:
        """Reserve room for all files that a fetch writes, `size` bytes, beside what is on the disk of them.

        Files of unknown size get what the last try needed for them.

        Raises RoomTakenError if only the reservations of other fetches are in the way; else StoreFullError if the usable bytes are fewer,
        StoreShortError if something is on the disk.
        """
        recorded = occupied = 0
        if self._objects is not None:
            recorded, occupied = await until_written(
                partial(self._objects.bytes_of, row), "look up what a transfer has on the disk"
            )
        unsized = self._waits.unsized_bytes.get(attempt_of(row), 0)
        needed = max(size - occupied, 0) + unsized
        async with self._reserving:
            await self._check(attempt_of(row), needed, StoreShortError if occupied else StoreFullError)
            self._reserved[row.model_uuid] = needed
            self._attempts[row.model_uuid] = attempt_of(row)
            self._paces[row.model_uuid] = Pace(self._waits.clock)
            self._rewritten[row.model_uuid] = max(occupied - recorded, 0)
            self._stepped[row.model_uuid] = self._ahead[row.model_uuid] = unsized

    async def extend(self, row: TransferRow, length: int) -> None:
        """Reserve room for the next `length` bytes of a file of unknown size, in steps. Raises RoomTakenError and StoreFullError."""
        model_uuid, attempt = row.model_uuid, attempt_of(row)
        ahead = self._ahead.get(model_uuid, 0) - length
        if ahead < 0:
            stepped = self._stepped.get(model_uuid, 0)
            step = max(STEP_BYTES, length, self._waits.unsized_bytes.get(attempt, 0) - stepped)
            async with self._reserving:
                needed = self._reserved.get(model_uuid, 0) + step
                try:
                    await self._check(attempt, needed, StoreFullError)
                except RoomTakenError:
                    self._waits.unsized_bytes[attempt] = stepped + step
                    raise
                self._reserved[model_uuid] = needed
                self._attempts[model_uuid] = attempt
                self._paces.setdefault(model_uuid, Pace(self._waits.clock))
                self._rewritten.setdefault(model_uuid, 0)
            self._stepped[model_uuid] = stepped + step
            ahead += step
        self._ahead[model_uuid] = ahead

    async def _check(self, attempt: TransferAttempt, needed: int, full: type[StoreFullError]) -> None:
        """Take the room of slow fetches if it is missing. Raise RoomTakenError or `full` unless a fetch may have `needed` bytes."""
        model_uuid = attempt.model_uuid
        self._check_not_taken(model_uuid)
        # In this order: what another fetch writes meanwhile is missing in the free bytes, too, and not in its reservation.
        reserved = {other: left for other, left in self._reserved.items() if other != model_uuid}
        others = sum(reserved.values())
        space = await self._store.space()
        if space is None or needed <= space.usable - others:
            return
        words = f"the files of the model need {needed} more bytes and the object store has {space.usable} bytes free for models"
        if needed > space.usable:
            raise full(words)
        slow = {other for other in reserved if other in self._reserved and not self._ends_in_time(other)}
        if attempt in self._waits.too_slow or (model_uuid in self._reserved and not self._ends_in_time(model_uuid)):
            slow.clear()
        yielded = yielding(reserved, slow, needed - (space.usable - others))
        if not yielded:
            most = max(reserved, key=lambda other: reserved[other])
            raise RoomTakenError(f"{words}, {others} of which other downloads need, {reserved[most]} that of {most}")
        for other in yielded:
            self._reserved[other] = 0
            self._taken[other] = model_uuid
            self._waits.too_slow.add(self._attempts[other])

    def _ends_in_time(self, model_uuid: str) -> bool:
        return self._paces[model_uuid].ends_in_time(self._reserved[model_uuid])

    def _check_not_taken(self, model_uuid: str) -> None:
        if model_uuid in self._taken:
            hours = int(MAX_HOLD_SECONDS // 3600)
            raise RoomTakenError(
                f"its bytes come too slowly to end within {hours} hours, so the download of {self._taken[model_uuid]} has got its room"
            )

    def use(self, model_uuid: str, length: int) -> None:
        """Note that a fetch writes bytes: first those that have a place, because the first missing parts have them, then new ones.

        Raises RoomTakenError if another fetch has got its room.
        """
        self._check_not_taken(model_uuid)
        if model_uuid in self._reserved:
            self._paces[model_uuid].add(length)
            again = min(self._rewritten[model_uuid], length)
            self._rewritten[model_uuid] -= again
            self._reserved[model_uuid] = max(self._reserved[model_uuid] - length + again, 0)

    def release(self, model_uuid: str) -> None:
        """End the reservation of a fetch. Idempotent."""
        for each in (self._rewritten, self._stepped, self._ahead, self._paces, self._taken, self._attempts):
            each.pop(model_uuid, None)
        if self._reserved.pop(model_uuid, None) is not None:
            self._waits.room_freed()


class FileRoom:
    """The room of one file of a fetch. `size` is None if it is unknown; `reserved`: its fetch has reserved room for all known sizes."""

    def __init__(self, room: Room, row: TransferRow, size: int | None, *, reserved: bool) -> None:
        self._room = room
        self._row = row
        self._size = size
        self._reserved = reserved

    async def take(self, length: int) -> None:
        """Reserve room before `length` bytes are written; with 0, before parts are. The first call comes after the check of the header.

        Raises RoomTakenError and StoreFullError.
        """
        if self._size is None:
            await self._room.extend(self._row, length)
        elif not self._reserved:
            await self._room.reserve(self._row, self._size)
            self._reserved = True
