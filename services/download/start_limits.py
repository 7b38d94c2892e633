"""Limits the downloads that have not ended: each pass of the worker reads them, and each keeps a row; and the records of those that ended.

Each watch of the catalogue reads all records, so of the downloads that ended without a model a user keeps the newest.

Invariant: in the transaction that starts a transfer, the names are locked (`aliases.lock_names`), so no two starts count the same number.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.errors import MeshError, Reason
from services.download.tables import ACTIVE, UNENDED, ModelRow, TransferRow, TransferState

MAX_UNENDED_OF_USER = 100
"""Maximum number of downloads of one user that have not ended, paused ones included."""
MAX_UNENDED = 1_000
"""Maximum number of active downloads of all users, and of those that a pass of the worker reads. Paused ones do not count: few users could
stop all others with them, for good."""
MAX_ENDED_OF_USER = 200
"""Maximum number of downloads of one user that have failed or were cancelled, have no model, and keep their records."""


async def refuse_too_many(session: AsyncSession, requested_by: str) -> None:
    """Raise TOO_MANY_JOBS if one more download of a user may not start."""
    count = select(func.count()).select_from(TransferRow)
    own = count.where(TransferRow.state.in_(UNENDED), TransferRow.requested_by == requested_by)
    if (await session.scalar(own) or 0) >= MAX_UNENDED_OF_USER:
        raise _too_many(
            f"{MAX_UNENDED_OF_USER} of your downloads have not ended, which is the most that one user may have",
            MAX_UNENDED_OF_USER,
        )
    if (await session.scalar(count.where(TransferRow.state.in_(ACTIVE))) or 0) >= MAX_UNENDED:
        words = f"{MAX_UNENDED} downloads of all users run or wait, which is the most that the mesh may have"
        raise _too_many(words, MAX_UNENDED)


async def remove_surplus(session: AsyncSession, requested_by: str) -> Sequence[TransferRow]:
    """Remove the oldest records of a user that are more than MAX_ENDED_OF_USER, and return them."""
    ended = (
        TransferRow.requested_by == requested_by,
        TransferRow.state.in_((TransferState.FAILED, TransferState.CANCELLED)),
        ~exists().where(ModelRow.model_uuid == TransferRow.model_uuid),
    )
    newest_first = (TransferRow.create_time.desc(), TransferRow.model_uuid.desc())
    query = select(TransferRow.model_uuid).where(*ended).order_by(*newest_first).offset(MAX_ENDED_OF_USER)
    if not (surplus := (await session.scalars(query)).all()):
        return ()
    removal = delete(TransferRow).where(TransferRow.model_uuid.in_(surplus), *ended).returning(TransferRow)
    return (await session.scalars(removal, execution_options={"synchronize_session": False})).all()


def _too_many(words: str, limit: int) -> MeshError:
    return MeshError(Reason.ERROR_REASON_TOO_MANY_JOBS, words, {"limit": str(limit)})
