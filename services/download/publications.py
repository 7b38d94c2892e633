"""Publications: from verified bytes to a model in the catalogue, in two steps.

`publish` copies the bytes into the object store, unless the object of a record already has them. `record` writes the model and the success
of its transfer in one transaction. An object that is never recorded is removed by `abandon`, or by the sweep if this process is killed.

Invariant: `record` succeeds only while the published object exists (see `unowned_objects`).
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
from llamesh.kit.objects import ObjectInfo, ObjectNotFoundError, ObjectStore, StagedObject, object_key
from services.download.model_search import searchable, set_tags
from services.download.tables import ModelRow, TransferRow, TransferState
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
    unsound: frozenset[str] = field(default_factory=frozenset)
    """Keys of records with the same bytes whose objects are missing or damaged."""


class PublicationLostError(Exception):
    """The object was removed before it was recorded: its hold expired, or its last record was deleted."""


class Publications:
    """Publishes and records. `on_repaired` gets each model whose missing or damaged object was replaced."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        objects: UnownedObjects,
        clock: Callable[[], datetime],
        owner_id: str,
        on_repaired: Callable[[ModelRow], None],
    ) -> None:
        self._database = database
        self._store = store
        self._objects = objects
        self._clock = clock
        self._owner_id = owner_id
        self._on_repaired = on_repaired

    async def publish(self, staged: StagedObject) -> PublishedObject:
        """Copy verified bytes into the store, unless a record has them. The caller must then call `record` or `abandon`."""
        key, unsound = await self._published(staged.sha256, staged.size)
        if key:
            return PublishedObject(key, staged.sha256, staged.size, shared=True, unsound=unsound)
        key = object_key("models", staged.sha256, ".gguf", copy=secrets.token_hex(8))
        await self._objects.hold(key)
        publication = PublishedObject(key, staged.sha256, staged.size, shared=False, unsound=unsound)
        try:
            await staged.publish(key)
        except BaseException:
            await self.abandon(publication)
            raise
        return publication

    async def record(
        self, publication: PublishedObject, gguf: Mapping[str, Any], transfer: TransferRow
    ) -> tuple[ModelRow, TransferRow] | None:
        """Record the model and the transfer's success in one transaction. Idempotent: it may be repeated if the database failed.

        Return None if the transfer was cancelled, started again or taken over in the meantime. Raises PublicationLostError.
        """
        now = self._clock()
        async with self._database.begin() as session:
            await lock_bytes(self._database, session, publication.sha256)
            row = await current(session, transfer.model_uuid, transfer.attempt, self._owner_id)
            if row is None:
                return await _recorded(session, publication, transfer)
            key = await self._key_for(session, publication)
            before = await session.get(ModelRow, row.model_uuid)
            left = {*publication.unsound, before.object_key if before else key} - {key}
            # Records of the same bytes whose object is missing or damaged are repaired too.
            await session.execute(
                update(ModelRow)
                .where(ModelRow.sha256 == publication.sha256, ModelRow.object_key.in_(publication.unsound))
                .values(object_key=key, damage="", problem="")
            )
            model = await session.merge(
                ModelRow(
                    model_uuid=row.model_uuid,
                    name=row.name,
                    size_bytes=publication.size,
                    sha256=publication.sha256,
                    object_key=key,
                    source=row.shown_source,
                    revision=row.revision,
                    fetched_by=row.requested_by,
                    gguf=dict(gguf),
                    **searchable(row.name, gguf, row.shown_source),
                    damage="",
                    problem="",
                    create_time=now,
                )
            )
            await set_tags(session, row.model_uuid, gguf.get("tags", ()))
            await session.flush()
            repaired = await models_with(session, key) if publication.unsound else ()
            for each in left:
                await self._objects.disown(session, each)
            row.state = TransferState.SUCCEEDED
            row.bytes_done = row.bytes_total = publication.size
            row.sha256 = publication.sha256
            row.claimed_by = row.error_reason = row.error_message = ""
            row.update_time = now
        if not publication.shared and key != publication.key:
            left.add(publication.key)
        for each in left:
            await self._objects.try_remove(each)
        for repaired_model in repaired:
            self._on_repaired(repaired_model)
        return model, row

    async def abandon(self, publication: PublishedObject) -> None:
        """Remove a published object that gets no record. Idempotent, and without effect if a record has the object."""
        if not publication.shared:
            await self._objects.try_remove(publication.key)

    async def _published(self, sha256: str, size: int) -> tuple[str, frozenset[str]]:
        """Return the key of a sound object of a record with these bytes, or ""; and the keys of unsound ones."""
        async with self._database.read() as session:
            query = select(ModelRow.object_key, ModelRow.damage).where(ModelRow.sha256 == sha256)
            known = (await session.execute(query)).all()
        # The damage may be recorded in only one of several records with the same key.
        damaged = {(key, damage) for key, damage in known}
        unsound = set()
        for key in sorted({key for key, _ in damaged}):
            try:
                info = await self._store.stat(key)
            except ObjectNotFoundError:
                unsound.add(key)
                continue
            if info.size == size and (key, version_of(info)) not in damaged:
                return key, frozenset(unsound)
            unsound.add(key)
        return "", frozenset(unsound)

    async def _key_for(self, session: AsyncSession, publication: PublishedObject) -> str:
        """Return the key for the record: the key of a record that was written first, else the published key."""
        query = select(ModelRow.object_key).where(
            ModelRow.sha256 == publication.sha256, ModelRow.object_key.not_in(publication.unsound)
        )
        known = set((await session.scalars(query)).all())
        if publication.key in known:
            return publication.key
        if known:
            return min(known)
        if publication.shared or not await self._objects.adopt(session, publication.key):
            raise PublicationLostError(f"{publication.key} was removed before it had a record")
        return publication.key


async def _recorded(
    session: AsyncSession, publication: PublishedObject, transfer: TransferRow
) -> tuple[ModelRow, TransferRow] | None:
    """Return the rows of an earlier attempt whose commit succeeded although it seemed to fail; None if there are none."""
    row = await session.get(TransferRow, transfer.model_uuid)
    model = await session.get(ModelRow, transfer.model_uuid)
    if row is None or model is None or (row.attempt, row.state) != (transfer.attempt, TransferState.SUCCEEDED):
        return None
    return (model, row) if model.sha256 == publication.sha256 else None


async def models_with(session: AsyncSession, object_key: str) -> Sequence[ModelRow]:
    """Return the models that share an object, read again within a transaction that may have changed them."""
    query = select(ModelRow).where(ModelRow.object_key == object_key)
    return (await session.scalars(query, execution_options={"populate_existing": True})).all()


def version_of(info: ObjectInfo) -> str:
    """Return the key of one version of an object: an object that replaces it has another time or size."""
    return f"{info.size}:{info.modified.isoformat()}"
