"""The journal of the objects that are written in parts: which transfer writes which object, and which parts the store has.

The row of an object is written before the object is created and removed after the object, so an object without a row has no transfer.
A part is recorded when the store has it durably. A transfer that begins again, in this process or another, opens its object by the row.

If the source announces the digest, the store may write the object under the key of its model (`in_place`). Once complete it is an object
without a model (`unowned_objects`), which no sweep removes while its row is here.

Invariant: an object lives as long as its attempt of a transfer keeps parts (`kept_parts`): until the attempt has ended, and after a failure
of the source or the store for a time. What ended any other attempt does not matter: success, another failure, cancellation and a new
attempt all leave a row whose attempt has ended, and `remove_ended` removes row and object.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection

from sqlalchemy import ColumnElement, delete, exists, select, update

from llamesh.kit.completion import to_completion
from llamesh.kit.database import Database
from llamesh.kit.logs import log, report_failure
from llamesh.kit.objects import ObjectNotFoundError, PartedObject, PartedObjects, PartLayout, object_key
from services.download.kept_parts import KEEPS_PARTS, objects_of
from services.download.sources import SourceObject
from services.download.tables import ObjectPartRow, PartialObjectRow, TransferRow
from services.download.unowned_objects import UnownedObjects


def same_object(row: PartialObjectRow, found: SourceObject) -> bool:
    """Return whether the source still has the object of which parts were written."""
    return (row.etag, row.size, row.revision) == (found.etag, found.size, found.revision)


class PartialObjects:
    """The rows of `partial_object` and `object_part`, and their objects in the store."""

    def __init__(self, database: Database, parts: PartedObjects, unowned: UnownedObjects) -> None:
        self._database = database
        self._parts = parts
        self._unowned = unowned

    async def open(
        self, transfer: TransferRow, number: int, found: SourceObject, part_size: int
    ) -> tuple[str, PartedObject]:
        """Open the object of file `number` of an attempt, or create one if it has none or the source has another object now.

        Return its name too.
        """
        of_file = PartialObjectRow.model_uuid == transfer.model_uuid, PartialObjectRow.file_number == number
        for row, recorded in await self._of(*of_file):
            if row.attempt > transfer.attempt:
                continue  # the transfer was paused or started again since this run began: the object belongs to a later run
            if row.attempt == transfer.attempt and same_object(row, found):
                try:
                    layout = PartLayout(row.size, row.part_size)
                    opened = await self._parts.open(_place(row), row.upload, layout, recorded)
                except ObjectNotFoundError as error:
                    log.warning("parts are lost", model_uuid=transfer.model_uuid, error=str(error))
                else:
                    log.info("transfer goes on", model_uuid=transfer.model_uuid, parts_done=len(opened.done))
                    return row.name, opened
            await to_completion(self._remove(row))
        return await self._create(transfer, number, found, part_size)

    async def _create(
        self, transfer: TransferRow, number: int, found: SourceObject, part_size: int
    ) -> tuple[str, PartedObject]:
        assert found.size is not None
        layout = self._parts.layout(found.size, part_size)
        name = secrets.token_hex(16)
        in_place = self._parts.in_place and found.sha256
        row = PartialObjectRow(
            name=name,
            object_key=object_key("models", found.sha256, ".gguf", copy=name[:16]) if in_place else "",
            model_uuid=transfer.model_uuid,
            attempt=transfer.attempt,
            file_number=number,
            upload="",
            size=layout.size,
            part_size=layout.part_size,
            etag=found.etag,
            revision=found.revision,
        )
        upload = await to_completion(self._begin(row, layout))
        return name, await self._parts.open(_place(row), upload, layout, {})

    async def _begin(self, row: PartialObjectRow, layout: PartLayout) -> str:
        """Write the row, then create the object. Return the store's id of it."""
        name, place = row.name, _place(row)
        async with self._database.begin() as session:
            session.add(row)
        upload = await self._parts.create(place, layout)
        if upload:
            async with self._database.begin() as session:
                await session.execute(
                    update(PartialObjectRow).where(PartialObjectRow.name == name).values(upload=upload)
                )
        return upload

    async def bytes_of(self, transfer: TransferRow) -> tuple[int, int]:
        """Return the bytes of all parts that an attempt has recorded, and for how many the store needs no more room, recorded or not."""
        objects = [
            (_place(row), PartLayout(row.size, row.part_size), parts)
            for row, parts in await self._of(*objects_of(transfer.model_uuid, transfer.attempt))
        ]
        recorded = sum(layout.bytes_of(parts) for _, layout, parts in objects)
        return recorded, sum([await self._parts.occupied(*each) for each in objects])

    async def free(self, transfer: TransferRow) -> None:
        """Remove the bytes of an attempt that ends because the disk is full. A failure is logged and left to `remove_ended`.

        The rows stay: the database may be on the same disk, and only what this frees lets it write again.
        """
        try:
            for row, _ in await self._of(*objects_of(transfer.model_uuid, transfer.attempt)):
                await to_completion(self._parts.remove(_place(row), row.upload))
        except Exception as error:
            report_failure("remove the bytes of a transfer", error)

    async def hold(self, key: str) -> None:
        """Hold the key of an object that is about to be complete. Idempotent."""
        await self._unowned.hold(key)

    async def record(self, name: str, number: int, tag: str) -> None:
        """Record that the store has a part. Idempotent. Raises ObjectNotFoundError if the object was removed meanwhile."""
        async with self._database.begin() as session:
            if await session.get(PartialObjectRow, name, with_for_update=True) is None:
                raise ObjectNotFoundError(f"the object {name} was removed while it was written")
            await session.merge(ObjectPartRow(name=name, number=number, tag=tag))

    async def remove_ended(self, busy: Collection[str]) -> None:
        """Remove the objects whose attempts keep no parts. Those of `busy` models wait: their tasks have not ended."""
        kept = exists().where(*objects_of(TransferRow.model_uuid, TransferRow.attempt), KEEPS_PARTS)
        async with self._database.read() as session:
            rows = (await session.scalars(select(PartialObjectRow).where(~kept))).all()
        for row in rows:
            if row.model_uuid not in busy:
                await self._try_remove(row)

    async def sweep(self) -> None:
        """Remove the objects that have no row: an earlier database had it. A failure is logged and left to the next sweep."""
        try:
            # In this order: a row is older than its object.
            objects = await self._parts.found()
            async with self._database.read() as session:
                known = {_place(row) for row in (await session.scalars(select(PartialObjectRow))).all()}
            for name, upload in objects:
                if name not in known:
                    log.warning("an object in parts without a transfer is removed", name=name)
                    await self._parts.remove(name, upload)
        except Exception as error:
            report_failure("remove objects in parts without a transfer", error)

    async def _of(self, *conditions: ColumnElement[bool]) -> list[tuple[PartialObjectRow, dict[int, str]]]:
        async with self._database.read() as session:
            rows = (await session.scalars(select(PartialObjectRow).where(*conditions))).all()
            return [
                (
                    row,
                    {
                        part.number: part.tag
                        for part in await session.scalars(select(ObjectPartRow).where(ObjectPartRow.name == row.name))
                    },
                )
                for row in rows
            ]

    async def _try_remove(self, row: PartialObjectRow) -> None:
        """Remove an object and its row. A failure is logged and left to the next pass."""
        try:
            await to_completion(self._remove(row))
        except Exception as error:
            report_failure("remove an object in parts", error)

    async def _remove(self, row: PartialObjectRow) -> None:
        await self._parts.remove(_place(row), row.upload)
        if row.object_key:
            await self._unowned.try_remove(row.object_key)
        async with self._database.begin() as session:
            await session.execute(delete(ObjectPartRow).where(ObjectPartRow.name == row.name))
            await session.execute(delete(PartialObjectRow).where(PartialObjectRow.name == row.name))


def _place(row: PartialObjectRow) -> str:
    """Return the name of an object in the store."""
    return row.object_key or row.name
