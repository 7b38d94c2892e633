"""The room of the store for the fetches of this process: each reserves what it will write before its first byte.

The free bytes of the disk shrink as bytes are written, and the reservation of their fetch with them. So two fetches that fit alone and not
together do not both begin. The reservations are in memory, because one process writes to a directory (the lease on the store), and a
process that begins again reserves again. A bucket does not say how much room it has: nothing is reserved there.

Invariant: when a reservation is made, all reservations fit into the free bytes, but for what other programs write to the disk.
"""

from __future__ import annotations

import asyncio

from llamesh.kit.objects import ObjectStore, StoreFullError, StoreShortError
from services.download.partial_objects import PartialObjects
from services.download.tables import TransferRow


class Room:
    """The reservations, by model."""

    def __init__(self, store: ObjectStore, objects: PartialObjects | None) -> None:
        self._store = store
        self._objects = objects
        self._reserved: dict[str, int] = {}
        self._rewritten: dict[str, int] = {}
        """Bytes that have a place on the disk and are written again, because no part that has them is recorded."""
        self._reserving = asyncio.Lock()

    async def reserve(self, row: TransferRow, size: int) -> None:
        """Reserve room for all files that a fetch writes, `size` bytes, beside what is on the disk of them.

        Raises StoreFullError if the free bytes that no other fetch has reserved are fewer, StoreShortError if something is on the disk.
        """
        recorded, occupied = await self._objects.bytes_of(row) if self._objects is not None else (0, 0)
        needed = max(size - occupied, 0)
        async with self._reserving:
            # In this order: what another fetch writes meanwhile is missing in the free bytes, too, and not in its reservation.
            others = sum(left for model_uuid, left in self._reserved.items() if model_uuid != row.model_uuid)
            space = await self._store.space()
            if space is not None and needed > space.usable - others:
                words = (
                    f"the files of the model need {needed} more bytes and the object store has {space.usable} bytes free"
                )
                words += f", {others} of which other downloads need" if others else ""
                raise StoreShortError(words) if occupied else StoreFullError(words)
            self._reserved[row.model_uuid] = needed
            self._rewritten[row.model_uuid] = max(occupied - recorded, 0)

    def use(self, model_uuid: str, length: int) -> None:
        """Note that a fetch has written bytes: first those that have a place, because the first missing parts have them, then new ones."""
        if model_uuid in self._reserved:
            again = min(self._rewritten[model_uuid], length)
            self._rewritten[model_uuid] -= again
            self._reserved[model_uuid] = max(self._reserved[model_uuid] - length + again, 0)

    def release(self, model_uuid: str) -> None:
        """End the reservation of a fetch. Idempotent."""
        self._reserved.pop(model_uuid, None)
        self._rewritten.pop(model_uuid, None)
