"""The catalogue: models whose bytes are complete, verified and published.

Invariant: a record has its object, whatever several processes do on the same database and store. It rests on two rules:

1. Each publication has a key of its own (`models/<sha256>-<copy>.gguf`), so what removes an object can only remove that one,
   however late it comes. Models with the same bytes share an object by sharing the key of a record that is there.
2. A key that no record has stands in `unowned_object`. It gets a record only in a transaction that finds it held by this
   process and not marked as being removed; it is removed only after it was marked. Of the two, one comes first.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, exists, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason, name_of
from llamesh.kit.leases import LEASE_SECONDS, moment
from llamesh.kit.logs import log, report_failure
from llamesh.kit.objects import (
    ObjectDamagedError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectStore,
    StagedObject,
    StoreError,
    object_key,
)
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from services.download.gguf import GgufMetadata
from services.download.messages import gguf_fields
from services.download.tables import ACTIVE, ModelRow, State, TransferRow, UnownedObjectRow
from services.download.transfers import current

_LISTING = Listing("models", BY_TIME)
_ORDER = (ModelRow.create_time, ModelRow.model_uuid)

CORRUPT = name_of(Reason.ERROR_REASON_MODEL_CORRUPT)

_LOOK_SECONDS = 3.0
"""How long a look at an object may hold up a call."""


@dataclass(frozen=True, slots=True)
class Publication:
    """Bytes in the store, for a record that is to come."""

    key: str
    sha256: str
    size: int
    shared: bool
    """Whether the key is that of a record that was there."""
    unsound: frozenset[str] = field(default_factory=frozenset)
    """Keys of records with the same bytes whose objects are missing or damaged."""


class PublicationLostError(Exception):
    """The object was removed before it had a record: its hold was not renewed in time, or its last record went."""


class Catalogue:
    """The store of models. `clock` says what time it is, in UTC; `owner_id` is this process among those that share the tables.

    `on_transfer` is told of a transfer whose state says something new about its model, `on_model` of a model that is damaged or sound anew.
    """

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        clock: Callable[[], datetime],
        owner_id: str,
        on_transfer: Callable[[TransferRow], None] = lambda _: None,
        on_model: Callable[[ModelRow], None] = lambda _: None,
        new_copy: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        self._owner_id = owner_id
        self._on_transfer = on_transfer
        self._on_model = on_model
        self._new_copy = new_copy

    async def get(self, model_uuid: str) -> ModelRow:
        """One model. Raises MODEL_NOT_FOUND, or MODEL_NOT_READY while it is being fetched."""
        async with self._database.read() as session:
            model = await session.get(ModelRow, model_uuid)
        if model is not None:
            return model
        async with self._database.begin() as session:
            model = await session.get(ModelRow, model_uuid)
            transfer = await session.get(TransferRow, model_uuid)
        if model is None:
            raise _absent(model_uuid, transfer)
        return model

    async def page(self, asked: PageQuery) -> tuple[Sequence[ModelRow], str]:
        """A page by create time, then id, and the token of the next."""
        page = asked.of(_LISTING)
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(select(ModelRow), _ORDER))).all()
        return page.cut(rows, lambda row: (row.create_time, row.model_uuid))

    async def all(self) -> Sequence[ModelRow]:
        """Every model by create time."""
        async with self._database.read() as session:
            return (await session.scalars(select(ModelRow).order_by(ModelRow.create_time))).all()

    async def publish(self, staged: StagedObject) -> Publication:
        """Bring verified bytes into the store, unless a record has them there. To be followed by `record` or `abandon`."""
        key, unsound = await self._published(staged.sha256, staged.size)
        if key:
            return Publication(key, staged.sha256, staged.size, shared=True, unsound=unsound)
        key = object_key("models", staged.sha256, ".gguf", copy=self._new_copy())
        async with self._database.begin() as session:
            until = await session.scalar(select(moment(self._database, LEASE_SECONDS)))
            session.add(UnownedObjectRow(object_key=key, held_by=self._owner_id, held_until=until))
        publication = Publication(key, staged.sha256, staged.size, shared=False, unsound=unsound)
        try:
            await staged.publish(key)
        except BaseException:
            await self.abandon(publication)
            raise
        return publication

    async def record(
        self, publication: Publication, gguf: GgufMetadata, transfer: TransferRow
    ) -> tuple[ModelRow, TransferRow] | None:
        """Record the model and the transfer's success in one step; may be repeated where the database failed.

        None when the transfer was cancelled, started anew or taken over meanwhile. Raises PublicationLostError.
        """
        said = asdict(gguf)
        now = self._clock()
        async with self._database.begin() as session:
            await self._lock_bytes(session, publication.sha256)
            row = await current(session, transfer.model_uuid, transfer.attempt, self._owner_id)
            if row is None:
                return await _recorded(session, publication, transfer)
            key = await self._key_for(session, publication)
            before = await session.get(ModelRow, row.model_uuid)
            left = {*publication.unsound, before.object_key if before else key} - {key}
            # Records of the same bytes whose object is missing or damaged are repaired along with this one.
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
                    gguf={name: said[name] for name in gguf_fields()},
                    damage="",
                    problem="",
                    create_time=now,
                )
            )
            await session.flush()
            repaired = await _sharing(session, key) if publication.unsound else ()
            for each in left:
                await self._disown(session, each)
            row.state = State.SUCCEEDED
            row.bytes_done = row.bytes_total = publication.size
            row.sha256 = publication.sha256
            row.claimed_by = row.error_reason = row.error_message = ""
            row.update_time = now
        if not publication.shared and key != publication.key:
            left.add(publication.key)
        for each in left:
            await self._try_remove(each)
        for repaired_model in repaired:
            self._on_model(repaired_model)
        return model, row

    async def abandon(self, publication: Publication) -> None:
        """Remove what was published for nothing; harmless when repeated, and where it has a record."""
        if not publication.shared:
            await self._try_remove(publication.key)

    async def delete(self, model_uuid: str) -> ModelRow:
        """Remove the record and its transfer, then the object where no other record shares it."""
        while True:
            known = await self.get(model_uuid)
            async with self._database.begin() as session:
                # The order of all who lock: the bytes, the transfer, the model.
                await self._lock_bytes(session, known.sha256)
                transfer = await session.get(TransferRow, model_uuid, with_for_update=True)
                model = await session.get(ModelRow, model_uuid, with_for_update=True)
                if model is None:
                    raise _absent(model_uuid, transfer)
                if model.sha256 != known.sha256:
                    continue
                await session.delete(model)
                if transfer is not None:
                    await session.delete(transfer)
                await session.flush()
                await self._disown(session, model.object_key)
            await self._try_remove(model.object_key)
            return model

    async def locate(self, model_uuid: str) -> tuple[Path, ModelRow]:
        """The model as a file of this machine.

        Raises MODEL_CORRUPT where its object is missing or damaged, MODEL_NOT_READY while it is fetched again for that reason,
        STORE_UNAVAILABLE where the store cannot give it. An object that was found damaged is not read a second time.
        """
        model = await self.get(model_uuid)
        try:
            if model.damage and version_of(await self._store.stat(model.object_key)) == model.damage:
                raise ObjectDamagedError("its bytes in the object store are not those that were published")
            path = await self._store.local_path(model.object_key, size=model.size_bytes, published=model.create_time)
        except (ObjectDamagedError, ObjectNotFoundError) as error:
            raise await self._corrupt(model, error) from error
        except StoreError as error:
            raise MeshError(
                Reason.ERROR_REASON_STORE_UNAVAILABLE, f"{model_uuid}: {error}", {"modelUuid": model_uuid}
            ) from error
        await self._settle(model, "", "")
        model.problem = ""
        return path, model

    async def check_object(self, model_uuid: str) -> None:
        """Look whether a model's object is there, without reading it; its transfer says so afterwards. A silent store changes nothing."""
        async with self._database.read() as session:
            model = await session.get(ModelRow, model_uuid)
        if model is None:
            return
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                info = await self._store.stat(model.object_key)
        except ObjectNotFoundError as error:
            await self._corrupt(model, error)
        except (StoreError, TimeoutError):
            return
        else:
            if info.size != model.size_bytes:
                await self._corrupt(
                    model, ObjectDamagedError(f"it has {info.size} bytes instead of {model.size_bytes}")
                )

    async def renew(self) -> None:
        """Keep the objects that this process is about to give a record."""
        async with self._database.begin() as session:
            await session.execute(
                update(UnownedObjectRow)
                .where(UnownedObjectRow.held_by == self._owner_id, UnownedObjectRow.held_until.is_not(None))
                .values(held_until=moment(self._database, LEASE_SECONDS)),
                execution_options={"synchronize_session": False},
            )

    async def drop_holds(self) -> None:
        """Give up what the predecessor of this process held. To be called before this process publishes anything."""
        async with self._database.begin() as session:
            await session.execute(
                update(UnownedObjectRow).where(UnownedObjectRow.held_by == self._owner_id).values(held_until=None)
            )

    async def sweep(self) -> None:
        """Remove the objects that no record has and nobody holds."""
        async with self._database.read() as session:
            nobodys = or_(
                UnownedObjectRow.held_until.is_(None),
                UnownedObjectRow.held_until < moment(self._database),
                UnownedObjectRow.removing,
            )
            keys = (await session.scalars(select(UnownedObjectRow.object_key).where(nobodys))).all()
        for key in keys:
            await self._try_remove(key, only_if_nobodys=True)

    async def _published(self, sha256: str, size: int) -> tuple[str, frozenset[str]]:
        """The key of a record with these bytes whose object is there, empty without one; and the keys whose objects are not."""
        async with self._database.read() as session:
            query = select(ModelRow.object_key, ModelRow.damage).where(ModelRow.sha256 == sha256)
            known = (await session.execute(query)).all()
        # One record of several with a key may be the one in which damage was noted.
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

    async def _key_for(self, session: AsyncSession, publication: Publication) -> str:
        """The key that the record gets: that of a record which appeared first, else the published one."""
        query = select(ModelRow.object_key).where(
            ModelRow.sha256 == publication.sha256, ModelRow.object_key.not_in(publication.unsound)
        )
        known = set((await session.scalars(query)).all())
        if publication.key in known:
            return publication.key
        if known:
            return min(known)
        held = await session.get(UnownedObjectRow, publication.key, with_for_update=True)
        if publication.shared or held is None or held.removing:
            raise PublicationLostError(f"{publication.key} was removed before it had a record")
        await session.delete(held)
        return publication.key

    async def _disown(self, session: AsyncSession, key: str) -> None:
        """Note a key as unowned unless a record has it. The bytes are locked."""
        owners = await session.scalar(select(func.count()).select_from(ModelRow).where(ModelRow.object_key == key))
        if not owners:
            await session.merge(UnownedObjectRow(object_key=key, held_by="", held_until=None, removing=False))

    async def _try_remove(self, key: str, *, only_if_nobodys: bool = False) -> None:
        """Remove an unowned object, unless a record has it; what fails is left for the next sweep."""
        has_record = exists().where(ModelRow.object_key == key)
        row = UnownedObjectRow.object_key == key
        held = UnownedObjectRow.held_until > moment(self._database)
        mark = update(UnownedObjectRow).where(row, ~has_record).values(removing=True)
        if only_if_nobodys:
            mark = mark.where(or_(UnownedObjectRow.held_until.is_(None), ~held))
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

    async def _corrupt(self, model: ModelRow, error: StoreError) -> MeshError:
        """Write down that the model cannot be used, and give the error that says so."""
        message = f"{model.model_uuid} cannot be used: {error}"[:2000]
        damage = model.damage
        if isinstance(error, ObjectDamagedError) and not damage:
            try:
                damage = version_of(await self._store.stat(model.object_key))
            except StoreError:
                damage = ""
        transfer = await self._settle(model, message, damage)
        if transfer is not None and transfer.state in ACTIVE:
            return MeshError(
                Reason.ERROR_REASON_MODEL_NOT_READY,
                f"{message}; it is being fetched again",
                {"modelUuid": model.model_uuid},
            )
        log.warning("model is corrupt", model_uuid=model.model_uuid, key=model.object_key, error=str(error))
        return MeshError(Reason.ERROR_REASON_MODEL_CORRUPT, message, {"modelUuid": model.model_uuid})

    async def _settle(self, model: ModelRow, problem: str, damage: str) -> TransferRow | None:
        """Let the model and its transfer say whether its object is sound (`problem` empty); a later failure of the transfer stays."""
        async with self._database.read() as session:
            transfer = await session.get(TransferRow, model.model_uuid)
        says_corrupt = transfer is not None and transfer.error_reason == CORRUPT and transfer.state == State.FAILED
        right = says_corrupt if problem else not says_corrupt
        if right and (model.damage, model.problem) == (damage, problem):
            return transfer
        async with self._database.begin() as session:
            transfer = await session.get(TransferRow, model.model_uuid, with_for_update=True)
            row = await session.get(ModelRow, model.model_uuid, with_for_update=True)
            if row is None or row.object_key != model.object_key:
                return transfer
            # Models with the same bytes share the object, and what is known of it.
            sharing = update(ModelRow).where(ModelRow.object_key == row.object_key)
            await session.execute(sharing.values(damage=damage, problem=problem))
            models = await _sharing(session, row.object_key) if model.problem != problem else ()
            changed = transfer is not None and self._correct(transfer, problem)
        if transfer is not None and changed:
            self._on_transfer(transfer)
        for each in models:
            self._on_model(each)
        return transfer

    def _correct(self, transfer: TransferRow, problem: str) -> bool:
        """Let a transfer say what is known of its object; False if it says so, or something that came later."""
        if problem and transfer.state == State.SUCCEEDED:
            transfer.state, transfer.error_reason, transfer.error_message = State.FAILED, CORRUPT, problem
        elif not problem and transfer.error_reason == CORRUPT and transfer.state == State.FAILED:
            transfer.state, transfer.error_reason, transfer.error_message = State.SUCCEEDED, "", ""
        else:
            return False
        transfer.update_time = self._clock()
        return True

    async def _lock_bytes(self, session: AsyncSession, sha256: str) -> None:
        """Let one transaction at a time decide about objects with these bytes. A SQLite file has one writer anyway."""
        if self._database.schema:
            await session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(sha256, 0))))


async def _recorded(
    session: AsyncSession, publication: Publication, transfer: TransferRow
) -> tuple[ModelRow, TransferRow] | None:
    """What an earlier try has recorded, whose commit seemed to fail; None where it has not."""
    row = await session.get(TransferRow, transfer.model_uuid)
    model = await session.get(ModelRow, transfer.model_uuid)
    if row is None or model is None or (row.attempt, row.state) != (transfer.attempt, State.SUCCEEDED):
        return None
    return (model, row) if model.sha256 == publication.sha256 else None


async def _sharing(session: AsyncSession, object_key: str) -> Sequence[ModelRow]:
    """The models that share an object, as they are by now."""
    query = select(ModelRow).where(ModelRow.object_key == object_key)
    return (await session.scalars(query, execution_options={"populate_existing": True})).all()


def version_of(info: ObjectInfo) -> str:
    """What tells one version of an object from another that was put in its place."""
    return f"{info.size}:{info.modified.isoformat()}"


def _absent(model_uuid: str, transfer: TransferRow | None) -> MeshError:
    if transfer is not None and transfer.state in ACTIVE:
        return MeshError(
            Reason.ERROR_REASON_MODEL_NOT_READY, f"{model_uuid} is still being fetched", {"modelUuid": model_uuid}
        )
    return MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, f"there is no model {model_uuid}", {"modelUuid": model_uuid})
