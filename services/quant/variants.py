"""The published variants: their rows, and their objects in Quant's bucket.

Invariant: a row exists only after its object was published. A delete removes the object first: a crash in between leaves a row that can be
deleted again, and never an object without a row. Objects are removed by the owner of the lease only: each request to the bucket begins
while this process holds the lease's lock. If it takes longer than the transaction may, it goes on without the lock; whoever waits for the
removal waits for its end, also if it is cancelled, so this process does not publish the object again meanwhile.

A bucket knows no leases, so a request may still remove what was published under the same key after it began: if this process has lost its
lease meanwhile, because it was frozen or cut off from the database; or if the server carries it out after this process was killed, or after
the client of the bucket has given up (20 minutes on S3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from sqlalchemy import delete, select

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.objects import (
    DirectoryStore,
    ObjectDamagedError,
    ObjectNotFoundError,
    ObjectStore,
    StoreError,
)
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from llamesh.nearest import MAX_NAMES, nearest
from services.quant.tables import QuantModelRow
from services.quant.variant_objects import description_key

_LISTING = Listing("quant models", BY_TIME)
_ORDER = (QuantModelRow.create_time, QuantModelRow.model_uuid)


class Variants:
    """The models that Quant has made."""

    def __init__(self, database: Database, store: ObjectStore) -> None:
        self._database = database
        self._store = store
        self._turn = asyncio.Lock()
        """Held by the request that removes something. If many waited for a bucket, each would take a connection to the database."""

    async def get(self, model_uuid: str) -> QuantModelRow:
        """Return a model. Raises MODEL_NOT_FOUND with the nearest id."""
        async with self._database.read() as session:
            row = await session.get(QuantModelRow, model_uuid)
            if row is not None:
                return row
            known = (await session.scalars(select(QuantModelRow.model_uuid).limit(MAX_NAMES))).all()
        near = nearest(model_uuid, known)
        words = f"the Quant service has made no model {model_uuid}{near and f'; did you mean {near}?'}"
        raise MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, words, {"modelUuid": model_uuid})

    async def page(self, page_query: PageQuery) -> tuple[Sequence[QuantModelRow], str]:
        """Return a page by time and id, and the token of the next page."""
        page = page_query.of(_LISTING)
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(select(QuantModelRow), _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.model_uuid))

    async def delete(self, model_uuid: str) -> QuantModelRow:
        """Remove a model and its object. Raises MODEL_NOT_FOUND and STORE_UNAVAILABLE."""
        row = await self.get(model_uuid)
        await self.remove_object(row.object_key)
        async with self._database.begin() as session:
            # Another call may have removed the model meanwhile, and a job may have made a newer one of the same name.
            same = (QuantModelRow.model_uuid == model_uuid, QuantModelRow.object_key == row.object_key)
            await session.execute(delete(QuantModelRow).where(*same))
        return row

    async def locate(self, model_uuid: str) -> tuple[QuantModelRow, str]:
        """Return a model and the path of its file, empty if the bucket is on an S3 server.

        Raises MODEL_NOT_FOUND, MODEL_CORRUPT if the object is missing or damaged, and STORE_UNAVAILABLE if the store cannot return it.
        """
        row = await self.get(model_uuid)
        if not isinstance(self._store, DirectoryStore):
            return row, ""
        try:
            path = await self._store.local_path(row.object_key, size=row.size_bytes, published=row.create_time)
        except (ObjectDamagedError, ObjectNotFoundError) as error:
            raise MeshError(Reason.ERROR_REASON_MODEL_CORRUPT, str(error), {"modelUuid": model_uuid}) from error
        except StoreError as error:
            raise MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, str(error), {"modelUuid": model_uuid}) from error
        return row, str(path)

    async def remove_object(self, key: str) -> None:
        """Remove an object, its description, and what a killed step `publish` has left of them.

        Raises STORE_UNAVAILABLE, and COMPONENT_UNAVAILABLE if another process owns the bucket's objects now.
        """
        await self._owned(lambda: self._store.remove_staged(key))
        await self._owned(lambda: self._store.delete(key))
        await self._owned(lambda: self._store.delete(description_key(key)))

    async def _owned(self, remove: Callable[[], Awaitable[object]]) -> None:
        """Make one request to the bucket as its owner, and wait for its end, also if the caller is cancelled.

        The transaction that keeps the ownership ends in time, whether the bucket has answered or not.
        """
        request: asyncio.Future[object] | None = None
        async with self._turn:
            try:
                async with self._database.owned() as seconds:
                    request = asyncio.ensure_future(remove())
                    await asyncio.wait({request}, timeout=seconds)
            finally:
                if request is not None:
                    await _ended(request)
        assert request is not None, "the block of `owned` has run"
        try:
            request.result()
        except StoreError as error:
            raise MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, str(error)) from error


async def _ended(request: asyncio.Future[object]) -> None:
    """Wait until a request has ended, however often the caller is cancelled: a thread makes it, which nobody can stop."""
    cancelled = False
    while not request.done():
        try:
            await asyncio.wait({request})
        except asyncio.CancelledError:
            cancelled = True
    if not request.cancelled():
        # The caller may not look at it.
        request.exception()
    if cancelled:
        raise asyncio.CancelledError
