"""The room of the store for the fetches of this process: each reserves what it will write before its first byte.

The free bytes of the disk shrink as bytes are written, and the reservation of their fetch with them. So two fetches that fit alone and not
together do not both begin. The reservations are in memory, because one process writes to a directory (the lease on the store), and a
process that begins again reserves again. A bucket does not say how much room it has: nothing is reserved there.

Invariant: when a reservation is made, all reservations fit into the free bytes, but for what other programs write to the disk.
"""

from __future__ import annotations

import asyncio

from llamesh.kit.objects import ObjectStore, StoreFullError
from services.download.partial_objects import PartialObjects
from services.download.tables import TransferRow


class Room:
    """The reservations, by model."""

    def __init__(self, store: ObjectStore, objects: PartialObjects | None) -> None:
        self._store = store
        self._objects = objects
        self._reserved: dict[str, int] = {}
        self._reserving = asyncio.Lock()

    async def reserve(self, row: TransferRow, size: int) -> None:
        """Reserve room for all files that a fetch writes, `size` bytes, beside the parts that the store has of them.

        Raises StoreFullError if the free bytes that no other fetch has reserved are fewer.
        """
        present = await self._objects.bytes_of(row) if self._objects is not None else 0
        needed = max(size - present, 0)
        async with self._reserving:
            # In this order: what another fetch writes meanwhile is missing in the free bytes, too, and not in its reservation.
            others = sum(left for model_uuid, left in self._reserved.items() if model_uuid != row.model_uuid)
            space = await self._store.space()
            if space is not None and needed > space.free - others:
                raise StoreFullError(
                    f"the files of the model need {needed} more bytes and the object store has {space.free} bytes free"
                    + (f", {others} of which other downloads need" if others else "")
                )
            self._reserved[row.model_uuid] = needed

    def use(self, model_uuid: str, length: int) -> None:
        """Note that a fetch has written bytes of its reservation."""
        if model_uuid in self._reserved:
            self._reserved[model_uuid] = max(self._reserved[model_uuid] - length, 0)

    def release(self, model_uuid: str) -> None:
        """End the reservation of a fetch. Idempotent."""
        self._reserved.pop(model_uuid, None)
