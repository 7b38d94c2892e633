"""Objects in the store that have no model: those that are about to get one, and those to be removed.

Several processes may share the tables and the store, and any of them may be killed at any time. Two rules keep the object of every model:

1. Each publication has a key of its own (`models/<sha256>-<copy>.gguf`), so a late removal can only remove that object. Models with the
   same bytes share one object: their records have the same key.
2. A key without a record has a row in `unowned_object`. It gets a record only in a transaction that finds the row held by this process
   and not marked for removal. The object is removed only after the mark. The database orders the two transactions.

Invariant: a model's record exists only while its object does.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.leases import LEASE_SECONDS, moment
from llamesh.kit.logs import report_failure
from llamesh.kit.objects import ObjectStore
from services.download.tables import ModelFileRow, PartialObjectRow, UnownedObjectRow


class UnownedObjects:
    """The rows of `unowned_object` and their objects. `owner_id` identifies this process among those that share the tables."""

    def __init__(self, database: Database, store: ObjectStore, owner_id: str) -> None:
        self._database = database
        self._store = store
        self._owner_id = owner_id

    async def hold(self, key: str) -> None:
        """Announce an object that this process is about to publish, and hold it for LEASE_SECONDS. Idempotent."""
        async with self._database.begin() as session:
            until = await session.scalar(select(moment(self._database, LEASE_SECONDS)))
            await session.merge(UnownedObjectRow(object_key=key, held_by=self._owner_id, held_until=until))

    async def renew(self) -> None:
        """Extend the holds of this process."""
        async with self._database.begin() as session:
            await session.execute(
                update(UnownedObjectRow)
                .where(UnownedObjectRow.held_by == self._owner_id, UnownedObjectRow.held_until.is_not(None))
                .values(held_until=moment(self._database, LEASE_SECONDS)),
                execution_options={"synchronize_session": False},
            )

    async def drop_holds(self) -> None:
        """End the holds of this process's predecessor. Call this before the first publication."""
        async with self._database.begin() as session:
            await session.execute(
                update(UnownedObjectRow).where(UnownedObjectRow.held_by == self._owner_id).values(held_until=None)
            )

    async def adopt(self, session: AsyncSession, key: str) -> bool:
        """Return whether the object can still be recorded. Called in the transaction that records a model with this key."""
        held = await session.get(UnownedObjectRow, key, with_for_update=True)
        if held is None or held.removing:
            return False
        await session.delete(held)
        return True

    async def disown(self, session: AsyncSession, key: str) -> None:
        """Note a key as unowned unless a record has it. Called in a transaction that has locked the bytes."""
        query = select(func.count()).select_from(ModelFileRow).where(ModelFileRow.object_key == key)
        owners = await session.scalar(query)
        if not owners:
            await session.merge(UnownedObjectRow(object_key=key, held_by="", held_until=None, removing=False))

    async def sweep(self) -> None:
        """Remove the objects that no record has, no process holds, and no transfer writes (`partial_objects`)."""
        async with self._database.read() as session:
            unheld = or_(
                UnownedObjectRow.held_until.is_(None),
                UnownedObjectRow.held_until < moment(self._database),
                UnownedObjectRow.removing,
            )
            keys = (await session.scalars(select(UnownedObjectRow.object_key).where(unheld))).all()
        for key in keys:
            await self.try_remove(key, only_unheld=True)

    async def try_remove(self, key: str, *, only_unheld: bool = False) -> None:
        """Remove an object unless a record has it. A failure is logged and left to the next sweep."""
        has_record = exists().where(ModelFileRow.object_key == key)
        row = UnownedObjectRow.object_key == key
        held = UnownedObjectRow.held_until > moment(self._database)
        mark = update(UnownedObjectRow).where(row, ~has_record).values(removing=True)
        if only_unheld:
            written = exists().where(PartialObjectRow.object_key == key)
            mark = mark.where(or_(UnownedObjectRow.held_until.is_(None), ~held), ~written)
        try:
            async with self._database.begin() as session:
                await session.execute(delete(UnownedObjectRow).where(row, has_record))
                marked = (await session.execute(mark.returning(UnownedObjectRow.object_key))).first()
            if marked is None:
                return
            await self._store.delete(key)
            async with self._database.begin() as session:
                await session.execute(delete(UnownedObjectRow).where(row))
        except Exception as error:
            report_failure("remove an object that no model has", error)


async def lock_bytes(database: Database, session: AsyncSession, digests: Iterable[str]) -> None:
    """Make transactions that decide about objects with these bytes run one at a time.

    All callers lock in the same order: the names of models, the bytes by their digests, the transfer, the model.
    """
    for sha256 in sorted(set(digests)):
        await database.lock(session, sha256)
