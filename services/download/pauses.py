"""Pauses of transfers: a paused transfer keeps its row and the parts that it has, and gets no slot until it is resumed.

A pause gives the transfer a new attempt and moves its objects in parts to it (`kept_parts`), so the run that it interrupts changes nothing
any more, however late it ends.

Invariant: a paused transfer is claimed by no process.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from services.download.kept_parts import kept_bytes, pass_on
from services.download.tables import ACTIVE, TransferRow, TransferState
from services.download.transfer_requests import queue_paused
from services.download.transfers import shown_row


class Pauses:
    """Pauses and resumes transfers. `clock` returns the time in UTC."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    async def pause(self, model_uuid: str) -> TransferRow:
        """Pause a transfer. Idempotent. Raises DOWNLOAD_NOT_FOUND, and DOWNLOAD_ENDED after its end."""
        async with self._database.begin() as session:
            row = await shown_row(session, model_uuid)
            if row.state == TransferState.PAUSED:
                return row
            _check_not_ended(row, "paused")
            row.state = TransferState.PAUSED
            await pass_on(session, row)
            row.attempt += 1
            row.bytes_done = await kept_bytes(session, row)
            row.error_reason = row.error_message = ""
            row.drop_claim()
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


def _check_not_ended(row: TransferRow, what: str) -> None:
    if row.state not in ACTIVE:
        raise MeshError(
            Reason.ERROR_REASON_DOWNLOAD_ENDED,
            f"the download of {row.model_uuid} is {row.state} and cannot be {what}",
            {"modelUuid": row.model_uuid, "state": row.state},
        )
