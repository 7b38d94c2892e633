"""Pauses of transfers: a paused transfer keeps its row and the parts that it has, and gets no slot until it is resumed.

A pause gives the transfer a new attempt and moves its objects in parts to it, so the run that it interrupts changes nothing any more,
however late it ends. The parts are kept for a time. After it the transfer, still paused, gets another attempt without the objects, which
are then removed like those of every attempt that is not active (`partial_objects`); once resumed, the transfer begins at its first byte.

Invariant: a paused transfer is claimed by no process.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.objects import PartLayout
from services.download.tables import ACTIVE, ObjectPartRow, PartialObjectRow, TransferRow, TransferState
from services.download.transfers import queue_paused, shown_row


class Pauses:
    """Pauses and resumes transfers. `clock` returns the time in UTC; parts are kept for the time `keep`."""

    def __init__(self, database: Database, clock: Callable[[], datetime], keep: timedelta) -> None:
        self._database = database
        self._clock = clock
        self._keep = keep

    async def pause(self, model_uuid: str) -> TransferRow:
        """Pause a transfer. Idempotent. Raises DOWNLOAD_NOT_FOUND, and DOWNLOAD_ENDED after its end."""
        async with self._database.begin() as session:
            row = await shown_row(session, model_uuid)
            if row.state == TransferState.PAUSED:
                return row
            _check_not_ended(row, "paused")
            row.state = TransferState.PAUSED
            row.attempt += 1
            objects = update(PartialObjectRow).where(*_objects_of(row.model_uuid, row.attempt - 1))
            await session.execute(objects.values(attempt=row.attempt))
            row.bytes_done = await _kept_bytes(session, row)
            row.error_reason = row.error_message = row.claimed_by = ""
            row.claim_expires = None
            row.update_time = self._clock()
            return row

    async def resume(self, model_uuid: str) -> TransferRow:
        """Queue a paused transfer. Idempotent. Raises DOWNLOAD_NOT_FOUND, and DOWNLOAD_ENDED after its end."""
        async with self._database.begin() as session:
            row = await shown_row(session, model_uuid)
            if row.state == TransferState.PAUSED:
                queue_paused(row, self._clock())
            else:
                _check_not_ended(row, "resumed")
            return row

    async def give_up_old_parts(self) -> list[TransferRow]:
        """Give up the parts of the transfers that were paused for longer than parts are kept, and return these transfers."""
        old = (
            update(TransferRow)
            .where(
                TransferRow.state == TransferState.PAUSED,
                TransferRow.update_time < self._clock() - self._keep,
                exists().where(*_objects_of(TransferRow.model_uuid, TransferRow.attempt)),
            )
            .values(attempt=TransferRow.attempt + 1, bytes_done=0)
            .returning(TransferRow)
        )
        async with self._database.begin() as session:
            return list((await session.scalars(old, execution_options={"synchronize_session": False})).all())


def _objects_of(
    model_uuid: str | InstrumentedAttribute[str], attempt: int | InstrumentedAttribute[int]
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return PartialObjectRow.model_uuid == model_uuid, PartialObjectRow.attempt == attempt


async def _kept_bytes(session: AsyncSession, row: TransferRow) -> int:
    """Return the number of bytes in the parts that the store has of a transfer."""
    kept = 0
    for found in await session.scalars(select(PartialObjectRow).where(*_objects_of(row.model_uuid, row.attempt))):
        numbers = await session.scalars(select(ObjectPartRow.number).where(ObjectPartRow.name == found.name))
        kept += PartLayout(found.size, found.part_size).bytes_of(dict.fromkeys(numbers, ""))
    return kept


def _check_not_ended(row: TransferRow, what: str) -> None:
    if row.state not in ACTIVE:
        raise MeshError(
            Reason.ERROR_REASON_DOWNLOAD_ENDED,
            f"the download of {row.model_uuid} is {row.state} and cannot be {what}",
            {"modelUuid": row.model_uuid, "state": row.state},
        )
