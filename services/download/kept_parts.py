"""Parts that a transfer keeps while it is stopped: paused, or failed because its source or the store was away.

The objects in parts belong to an attempt of a transfer. A pause, and a new start of a failed transfer, give the transfer its next attempt,
with these objects (`pass_on`). Parts are kept for a time, and not at all after a failure because the disk is full or the source may not be
used. Then the transfer gets another attempt without them, so that they are removed like those of every attempt that keeps none
(`partial_objects`); it then begins at its first byte.

Invariant: objects are passed on only to an attempt that fetches the same source with the same required digest.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, exists, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from llamesh.kit.database import Database
from llamesh.kit.errors import Reason, name_of
from llamesh.kit.objects import PartLayout
from services.download.source_names import same_source
from services.download.tables import ACTIVE, ObjectPartRow, PartialObjectRow, TransferRow, TransferState

_OUTAGES = tuple(
    map(
        name_of,
        (
            Reason.ERROR_REASON_SOURCE_REFUSED,
            Reason.ERROR_REASON_SOURCE_UNAVAILABLE,
            Reason.ERROR_REASON_STORE_UNAVAILABLE,
        ),
    )
)
"""Reasons of failures that are not about the bytes: a later start may use them. A failure because of a full disk, or because
the source may not be used, gives them up itself. A source also refuses a signature or a token that has expired."""
_STOPPED = or_(
    TransferRow.state == TransferState.PAUSED,
    and_(
        TransferRow.state == TransferState.FAILED,
        TransferRow.error_reason.in_(_OUTAGES),
        # A caller has removed the record.
        TransferRow.hidden.is_(False),
    ),
)
KEEPS_PARTS = or_(TransferRow.state.in_(ACTIVE), _STOPPED)
"""Whether a transfer keeps the objects of its attempt."""


class KeptParts:
    """Gives up what was kept for longer than the time `keep`. `clock` returns the time in UTC."""

    def __init__(self, database: Database, clock: Callable[[], datetime], keep: timedelta) -> None:
        self._database = database
        self._clock = clock
        self._keep = keep

    async def give_up_old(self) -> list[TransferRow]:
        """Give up the parts of the transfers that stopped longer ago than parts are kept, and return these transfers."""
        old = (
            update(TransferRow)
            .where(
                _STOPPED,
                TransferRow.update_time < self._clock() - self._keep,
                exists().where(*objects_of(TransferRow.model_uuid, TransferRow.attempt)),
            )
            .values(attempt=TransferRow.attempt + 1, bytes_done=0)
            .returning(TransferRow)
        )
        async with self._database.begin() as session:
            return list((await session.scalars(old, execution_options={"synchronize_session": False})).all())


def objects_of(
    model_uuid: str | InstrumentedAttribute[str], attempt: int | InstrumentedAttribute[int]
) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Return the conditions for the objects of an attempt."""
    return PartialObjectRow.model_uuid == model_uuid, PartialObjectRow.attempt == attempt


class LeftParts(NamedTuple):
    """What the parts that a failed transfer keeps are of."""

    source: str
    expected_sha256: str
    bytes_total: int

    def serve(self, row: TransferRow) -> bool:
        """Return whether the parts are of use for a transfer that starts."""
        return same_source(row.source, self.source) and row.expected_sha256 == self.expected_sha256


def left_by(row: TransferRow | None) -> LeftParts | None:
    """Return what the parts are of that a transfer keeps after its failure; None if it keeps none."""
    if row is None or row.state != TransferState.FAILED or row.error_reason not in _OUTAGES:
        return None
    return LeftParts(row.source, row.expected_sha256, row.bytes_total)


async def kept_bytes(session: AsyncSession, row: TransferRow) -> int:
    """Return the number of bytes in the recorded parts of the present attempt."""
    kept = 0
    for found in await session.scalars(select(PartialObjectRow).where(*objects_of(row.model_uuid, row.attempt))):
        numbers = await session.scalars(select(ObjectPartRow.number).where(ObjectPartRow.name == found.name))
        kept += PartLayout(found.size, found.part_size).bytes_of(dict.fromkeys(numbers, ""))
    return kept


async def pass_on(session: AsyncSession, row: TransferRow) -> None:
    """Pass the objects of the present attempt on to the next one, in the transaction that begins it."""
    await session.execute(
        update(PartialObjectRow).where(*objects_of(row.model_uuid, row.attempt)).values(attempt=row.attempt + 1)
    )
