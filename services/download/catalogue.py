"""The catalogue: models whose bytes are complete, verified and published.

Invariant: a record has its object. An object is noted as unowned before it is published and before its last record
goes; whatever then happens to this process, the next sweep removes exactly the objects that no record has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, func, select, tuple_

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import log
from llamesh.kit.objects import ObjectStore, StagedObject, StoreError, object_key
from llamesh.kit.pages import page_size, page_token
from services.download.gguf import GgufMetadata
from services.download.messages import gguf_fields, moment_key
from services.download.tables import ACTIVE, ModelRow, State, TransferRow, UnownedObjectRow
from services.download.transfers import current


class Catalogue:
    """The store of models. `clock` says what time it is, in UTC."""

    def __init__(self, database: Database, store: ObjectStore, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._store = store
        self._clock = clock
        # Models with the same bytes share an object: one may come while another goes.
        self._objects = asyncio.Lock()

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

    async def page(self, size: int, token: str) -> tuple[Sequence[ModelRow], str]:
        """A page by create time, then id, and the token of the next."""
        order = (ModelRow.create_time, ModelRow.model_uuid)
        limit = page_size(size)
        query = select(ModelRow).order_by(*order).limit(limit + 1)
        key = moment_key("models", token)
        if key:
            query = query.where(tuple_(*order) > key)
        async with self._database.read() as session:
            rows = (await session.scalars(query)).all()
        if len(rows) <= limit:
            return rows, ""
        last = rows[limit - 1]
        return rows[:limit], page_token("models", last.create_time.isoformat(), last.model_uuid)

    async def all(self) -> Sequence[ModelRow]:
        """Every model by create time."""
        async with self._database.read() as session:
            return (await session.scalars(select(ModelRow).order_by(ModelRow.create_time))).all()

    async def admit(
        self, staged: StagedObject, gguf: GgufMetadata, transfer: TransferRow
    ) -> tuple[ModelRow, TransferRow] | None:
        """Publish verified bytes, then record the model and the transfer's success in one step.

        None, and nothing is left, when the transfer was cancelled or started anew meanwhile. Not to be interrupted.
        """
        key = object_key("models", staged.sha256, ".gguf")
        async with self._objects:
            async with self._database.begin() as session:
                await session.merge(UnownedObjectRow(object_key=key))
            try:
                await staged.publish(key)
                admitted = await self._record(key, staged, gguf, transfer)
            except BaseException:
                await self._try_remove(key)
                raise
            if admitted is None:
                await self._try_remove(key)
            return admitted

    async def _record(
        self, key: str, staged: StagedObject, gguf: GgufMetadata, transfer: TransferRow
    ) -> tuple[ModelRow, TransferRow] | None:
        said = asdict(gguf)
        now = self._clock()
        async with self._database.begin() as session:
            row = await current(session, transfer.model_uuid, transfer.attempt)
            if row is None:
                return None
            model = await session.merge(
                ModelRow(
                    model_uuid=row.model_uuid,
                    name=row.name,
                    size_bytes=staged.size,
                    sha256=staged.sha256,
                    object_key=key,
                    source=row.shown_source,
                    gguf={field: said[field] for field in gguf_fields()},
                    create_time=now,
                )
            )
            await session.execute(delete(UnownedObjectRow).where(UnownedObjectRow.object_key == key))
            row.state = State.SUCCEEDED
            row.bytes_done = row.bytes_total = staged.size
            row.sha256 = staged.sha256
            row.update_time = now
        return model, row

    async def delete(self, model_uuid: str) -> ModelRow:
        """Remove the record and its transfer, then the object where no other record shares it."""
        async with self._objects:
            async with self._database.begin() as session:
                model = await session.get(ModelRow, model_uuid, with_for_update=True)
                transfer = await session.get(TransferRow, model_uuid, with_for_update=True)
                if model is None:
                    raise _absent(model_uuid, transfer)
                await session.delete(model)
                if transfer is not None:
                    await session.delete(transfer)
                await session.merge(UnownedObjectRow(object_key=model.object_key))
            await self._try_remove(model.object_key)
        return model

    async def locate(self, model_uuid: str) -> tuple[Path, ModelRow]:
        """The model as a file of this machine. Raises STORE_UNAVAILABLE where the store cannot give it."""
        model = await self.get(model_uuid)
        try:
            return await self._store.local_path(model.object_key), model
        except StoreError as error:
            raise MeshError(
                Reason.ERROR_REASON_STORE_UNAVAILABLE, f"{model_uuid}: {error}", {"modelUuid": model_uuid}
            ) from error

    async def sweep(self) -> None:
        """Remove the objects that no record has."""
        async with self._objects:
            async with self._database.begin() as session:
                keys = (await session.scalars(select(UnownedObjectRow.object_key))).all()
            for key in keys:
                await self._try_remove(key)

    async def _try_remove(self, key: str) -> None:
        """Remove an unowned object, unless a record has it; what fails is left for the next sweep."""
        try:
            async with self._database.begin() as session:
                owners = await session.scalar(
                    select(func.count()).select_from(ModelRow).where(ModelRow.object_key == key)
                )
            if not owners:
                await self._store.delete(key)
            async with self._database.begin() as session:
                await session.execute(delete(UnownedObjectRow).where(UnownedObjectRow.object_key == key))
        except Exception as error:
            log.warning("object not removed", key=key, error=str(error))


def _absent(model_uuid: str, transfer: TransferRow | None) -> MeshError:
    if transfer is not None and transfer.state in ACTIVE:
        return MeshError(
            Reason.ERROR_REASON_MODEL_NOT_READY, f"{model_uuid} is still being fetched", {"modelUuid": model_uuid}
        )
    return MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, f"there is no model {model_uuid}", {"modelUuid": model_uuid})
