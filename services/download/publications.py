"""Publications: from verified bytes to a model in the catalogue, in two steps.

`publish` copies the bytes of a file into the object store, unless the object of a record already has them. `record` writes the model with
all its files and the success of its transfer in one transaction. An object that is never recorded is removed by `abandon`, or by the
sweep if this process is killed.

Invariant: `record` succeeds only while the published objects exist (see `unowned_objects`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.objects import StagedObject, object_key
from llamesh.v1.quant_pb2 import QuantReport
from services.download.messages import quality_fields
from services.download.model_search import searchable, set_tags
from services.download.present_objects import PresentObjects
from services.download.sources import FileRole
from services.download.tables import ModelFileRow, ModelRow, TransferRow, TransferState
from services.download.transfers import current
from services.download.unowned_objects import UnownedObjects, lock_bytes


@dataclass(frozen=True, slots=True)
class PublishedObject:
    """Bytes in the store that have no record yet."""

    key: str
    sha256: str
    size: int
    shared: bool
    """Whether the object belongs to an earlier record with the same bytes."""
    kept: bool = False
    """Whether the object is that of `partial_objects`, which removes it."""
    unsound: frozenset[str] = field(default_factory=frozenset)
    """Keys of records with the same bytes whose objects are missing or damaged."""


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of a model, published."""

    role: FileRole
    name: str
    object: PublishedObject
    source_version: str
    """See `present_objects`."""
    quality: QuantReport | None
    """See SourceObject."""


class PublicationLostError(Exception):
    """The object was removed before it was recorded: its hold expired, or its last record was deleted."""


class Publications:
    """Publishes and records. `on_repaired` gets each model whose missing or damaged object was replaced."""

    def __init__(
        self,
        database: Database,
        present: PresentObjects,
        objects: UnownedObjects,
        clock: Callable[[], datetime],
        owner_id: str,
        on_repaired: Callable[[ModelRow], None],
    ) -> None:
        self._database = database
        self._present = present
        self._objects = objects
        self._clock = clock
        self._owner_id = owner_id
        self._on_repaired = on_repaired

    async def publish(self, staged: StagedObject) -> PublishedObject:
        """Copy verified bytes to their key, unless they are there or a record has them. The caller must then call `record` or `abandon`."""
        key, unsound = await self._present.sound(staged.sha256, staged.size)
        if key:
            return PublishedObject(key, staged.sha256, staged.size, shared=True, unsound=unsound)
        key = staged.key or object_key("models", staged.sha256, ".gguf", copy=secrets.token_hex(8))
        kept = bool(staged.key)
        if not kept:
            await self._objects.hold(key)
        publication = PublishedObject(key, staged.sha256, staged.size, shared=False, kept=kept, unsound=unsound)
        try:
            await staged.publish(key)
        except BaseException:
            await self.abandon(publication)
            raise
        return publication

    async def record(
        self, files: Sequence[PublishedFile], facts: Mapping[str, Mapping[str, Any]], transfer: TransferRow
    ) -> tuple[ModelRow, TransferRow] | None:
        """Record the model and the transfer's success in one transaction. Idempotent: it may be repeated if the database failed.

        `files` are at least one, in the order of their numbers. `facts` are the columns `gguf` and `source_facts`.

        Return None if the transfer was cancelled, started again or taken over in the meantime. Raises PublicationLostError.
        """
        now = self._clock()
        async with self._database.read() as session:
            present = await session.get(ModelRow, transfer.model_uuid)
            known = present.digests if present is not None else []
        async with self._database.begin() as session:
            # Those of the model, too: another model may be about to get an object that this one leaves. While the transfer is this one, the
            # model has the same bytes as before the lock.
            await lock_bytes(self._database, session, {*known, *(file.object.sha256 for file in files)})
            row = await current(session, transfer.model_uuid, transfer.attempt, self._owner_id)
            if row is None:
                return await _recorded(session, files, transfer)
            key_of = {
                sha256: await self._key_for(session, each)
                for sha256, each in {file.object.sha256: file.object for file in files}.items()
            }
            keys = [key_of[file.object.sha256] for file in files]
            before = await session.get(ModelRow, row.model_uuid)
            left = {file.object_key for file in before.files} if before else set()
            left = left.union(*(file.object.unsound for file in files)) - set(keys)
            for file, key in zip(files, keys, strict=True):
                await _repair(session, file.object, key)
            size = sum(file.object.size for file in files)
            model = await session.merge(
                ModelRow(
                    model_uuid=row.model_uuid,
                    name=row.name,
                    size_bytes=size,
                    source=row.shown_source,
                    revision=row.revision,
                    fetched_by=row.requested_by,
                    gguf=dict(facts["gguf"]),
                    source_facts=dict(facts["source_facts"]),
                    **searchable(row.name, facts["gguf"], row.shown_source),
                    create_time=now,
                    files=[
                        _file_row(row.model_uuid, number, file, key)
                        for number, (file, key) in enumerate(zip(files, keys, strict=True), 1)
                    ],
                )
            )
            await set_tags(session, row.model_uuid, facts["gguf"].get("tags", ()))
            await session.flush()
            repaired = {
                each.model_uuid: each
                for file, key in zip(files, keys, strict=True)
                if file.object.unsound
                for each in await models_with(session, key)
            }
            for each in left:
                await self._objects.disown(session, each)
            row.state = TransferState.SUCCEEDED
            row.bytes_done = row.bytes_total = size
            row.sha256 = model.sha256
            row.fetched_with = {}
            row.error_reason = row.error_message = ""
            row.drop_claim()
            row.update_time = now
        left.update(file.object.key for file in files if not file.object.shared and file.object.key not in keys)
        for each in left:
            await self._objects.try_remove(each)
        for repaired_model in repaired.values():
            self._on_repaired(repaired_model)
        return model, row

    async def abandon(self, publication: PublishedObject) -> None:
        """Remove a published object that gets no record. Idempotent, and without effect if a record has the object.

        A later run of the transfer may need an object in parts, as it may need a staged one.
        """
        if not publication.shared and not publication.kept:
            await self._objects.try_remove(publication.key)

    async def _key_for(self, session: AsyncSession, publication: PublishedObject) -> str:
        """Return the key for the record: the key of a record that was written first, else the published key."""
        query = select(ModelFileRow.object_key).where(
            ModelFileRow.sha256 == publication.sha256, ModelFileRow.object_key.not_in(publication.unsound)
        )
        known = set((await session.scalars(query)).all())
        if publication.key in known:
            return publication.key
        if known:
            return min(known)
        if publication.shared or not await self._objects.adopt(session, publication.key):
            raise PublicationLostError(f"{publication.key} was removed before it had a record")
        return publication.key


async def _repair(session: AsyncSession, published: PublishedObject, key: str) -> None:
    """Give the published object to all files with the same bytes whose object is missing or damaged."""
    await session.execute(
        update(ModelFileRow)
        .where(ModelFileRow.sha256 == published.sha256, ModelFileRow.object_key.in_(published.unsound))
        .values(object_key=key, damage="", problem="")
    )


def _file_row(model_uuid: str, number: int, file: PublishedFile, key: str) -> ModelFileRow:
    return ModelFileRow(
        model_uuid=model_uuid,
        number=number,
        role=file.role,
        name=file.name,
        size_bytes=file.object.size,
        sha256=file.object.sha256,
        object_key=key,
        source_version=file.source_version,
        quality=quality_fields(file.quality),
        damage="",
        problem="",
    )


async def _recorded(
    session: AsyncSession, files: Sequence[PublishedFile], transfer: TransferRow
) -> tuple[ModelRow, TransferRow] | None:
    """Return the rows of an earlier attempt whose commit succeeded although it seemed to fail; None if there are none."""
    row = await session.get(TransferRow, transfer.model_uuid)
    model = await session.get(ModelRow, transfer.model_uuid)
    if row is None or model is None or (row.attempt, row.state) != (transfer.attempt, TransferState.SUCCEEDED):
        return None
    same = model.digests == [file.object.sha256 for file in files]
    return (model, row) if same else None


async def models_with(session: AsyncSession, object_key: str) -> Sequence[ModelRow]:
    """Return the models that share an object, read again within a transaction that may have changed them."""
    having = select(ModelFileRow.model_uuid).where(ModelFileRow.object_key == object_key)
    query = select(ModelRow).where(ModelRow.model_uuid.in_(having))
    return (await session.scalars(query, execution_options={"populate_existing": True})).all()
