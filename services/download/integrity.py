"""Checks whether the objects of a model are present and undamaged.

A model is checked when it is located for an engine (its bytes are hashed while they are copied to this machine) and when it is requested
again (only size and presence). The result is written to the file and to the transfer of its model: a model with a problem cannot be
served, and a new download of the same model repairs it.

Invariant: a damaged object is not read a second time until it is replaced; `damage` identifies the version that was read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from sqlalchemy import update

from llamesh.file_holds import held
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import log
from llamesh.kit.objects import ObjectDamagedError, ObjectNotFoundError, ObjectStore, StoreError
from services.download.catalogue import Catalogue
from services.download.present_objects import version_of
from services.download.publications import models_with
from services.download.tables import ACTIVE, ModelFileRow, ModelRow, TransferRow, TransferState
from services.download.transfer_requests import CORRUPT

CHECK_SECONDS = 3.0
"""Seconds for which the check of an object may delay a call."""


class Integrity:
    """Checks objects. `on_transfer` and `on_model` get each row that the result changed; `clock` returns the time in UTC."""

    def __init__(
        self,
        database: Database,
        store: ObjectStore,
        catalogue: Catalogue,
        clock: Callable[[], datetime],
        on_transfer: Callable[[TransferRow], None],
        on_model: Callable[[ModelRow], None],
    ) -> None:
        self._database = database
        self._store = store
        self._catalogue = catalogue
        self._clock = clock
        self._on_transfer = on_transfer
        self._on_model = on_model

    async def locate(self, model_uuid: str) -> tuple[list[Path], ModelRow]:
        """Return the paths of the model's files on this machine, in their order, and its row.

        Raises MODEL_CORRUPT if an object is missing or damaged, MODEL_NOT_READY while it is fetched again for that reason, and
        STORE_UNAVAILABLE if the store cannot return it.
        """
        model = await self._catalogue.get(model_uuid)
        # The cache of this machine may not remove the first file while the last one is fetched.
        with contextlib.ExitStack() as holds:
            try:
                return await self._located(model, holds), model
            except OSError as error:
                words = f"{model_uuid}: a file of the model cannot be opened: {error.strerror}"
                raise MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, words, {"modelUuid": model_uuid}) from error

    async def _located(self, model: ModelRow, holds: contextlib.ExitStack) -> list[Path]:
        """Return the paths of a model's files, each held until `holds` are closed."""
        model_uuid = model.model_uuid
        paths = []
        for file in model.files:
            try:
                if file.damage and version_of(await self._store.stat(file.object_key)) == file.damage:
                    raise ObjectDamagedError("its bytes in the object store differ from those that were published")
                path = await self._store.local_path(file.object_key, size=file.size_bytes, published=model.create_time)
                await asyncio.to_thread(holds.enter_context, held([path]))
            except (ObjectDamagedError, ObjectNotFoundError) as error:
                raise await self._corrupt(model, file, error) from error
            except StoreError as error:
                raise MeshError(
                    Reason.ERROR_REASON_STORE_UNAVAILABLE, f"{model_uuid}: {error}", {"modelUuid": model_uuid}
                ) from error
            await self._set_problem(model, file, "", "")
            file.problem = ""
            paths.append(path)
        return paths

    async def check_object(self, model_uuid: str) -> None:
        """Check presence and size of a model's objects, without reading them. If the store does not answer, nothing is changed."""
        async with self._database.read() as session:
            model = await session.get(ModelRow, model_uuid)
        if model is None:
            return
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                problems = [await self._seen(file) for file in model.files]
        except (StoreError, TimeoutError):
            return
        for file, problem in zip(model.files, problems, strict=True):
            if problem is not None:
                await self._corrupt(model, file, problem)

    async def _seen(self, file: ModelFileRow) -> StoreError | None:
        """Return what presence and size of an object say against it. Raises StoreError if the store does not answer."""
        try:
            info = await self._store.stat(file.object_key)
        except ObjectNotFoundError as error:
            return error
        if info.size != file.size_bytes:
            return ObjectDamagedError(f"it has {info.size} bytes instead of {file.size_bytes}")
        return None

    async def _corrupt(self, model: ModelRow, file: ModelFileRow, error: StoreError) -> MeshError:
        """Record that the model cannot be used, and return the error for it."""
        part = f" (file {file.number} of {len(model.files)})" if len(model.files) > 1 else ""
        message = f"{model.model_uuid}{part} cannot be used: {error}"[:2000]
        damage = file.damage
        if isinstance(error, ObjectDamagedError) and not damage:
            try:
                damage = version_of(await self._store.stat(file.object_key))
            except StoreError:
                damage = ""
        transfer = await self._set_problem(model, file, message, damage)
        if transfer is not None and transfer.state in ACTIVE:
            return MeshError(
                Reason.ERROR_REASON_MODEL_NOT_READY,
                f"{message}; it is being fetched again",
                {"modelUuid": model.model_uuid},
            )
        log.warning("model is corrupt", model_uuid=model.model_uuid, key=file.object_key, error=str(error))
        return MeshError(Reason.ERROR_REASON_MODEL_CORRUPT, message, {"modelUuid": model.model_uuid})

    async def _set_problem(self, model: ModelRow, file: ModelFileRow, problem: str, damage: str) -> TransferRow | None:
        """Write the problem to the file and its model's transfer; "" if the object is sound. A later failure of the transfer is kept.

        The transfer is corrected only when no file of the model has a problem.
        """
        async with self._database.read() as session:
            transfer = await session.get(TransferRow, model.model_uuid)
        says_corrupt = (
            transfer is not None and transfer.error_reason == CORRUPT and transfer.state == TransferState.FAILED
        )
        left = problem or next((other.problem for other in model.files if other is not file and other.problem), "")
        right = says_corrupt if left else not says_corrupt
        if right and (file.damage, file.problem) == (damage, problem):
            return transfer
        async with self._database.begin() as session:
            transfer = await session.get(TransferRow, model.model_uuid, with_for_update=True)
            row = await session.get(ModelFileRow, (file.model_uuid, file.number), with_for_update=True)
            if row is None or row.object_key != file.object_key:
                return transfer
            # Files with the same bytes share the object, and therefore its problem.
            sharing = update(ModelFileRow).where(ModelFileRow.object_key == row.object_key)
            await session.execute(sharing.values(damage=damage, problem=problem))
            models = await models_with(session, row.object_key) if file.problem != problem else ()
            changed = transfer is not None and self._correct(transfer, left)
        if transfer is not None and changed:
            self._on_transfer(transfer)
        for each in models:
            self._on_model(each)
        return transfer

    def _correct(self, transfer: TransferRow, problem: str) -> bool:
        """Set a transfer's state by the problem of its object, and show it if it was hidden. Return False if nothing has to change."""
        if problem and transfer.state == TransferState.SUCCEEDED:
            transfer.state, transfer.error_reason, transfer.error_message = TransferState.FAILED, CORRUPT, problem
        elif not problem and transfer.error_reason == CORRUPT and transfer.state == TransferState.FAILED:
            transfer.state, transfer.error_reason, transfer.error_message = TransferState.SUCCEEDED, "", ""
        else:
            return False
        transfer.hidden = False
        transfer.update_time = self._clock()
        return True
