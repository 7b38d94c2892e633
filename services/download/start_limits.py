"""Limits the downloads that have not ended: each pass of the worker reads them, and each keeps a row.

Invariant: in the transaction that starts a transfer, the names are locked (`aliases.lock_names`), so no two starts count the same number.
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.errors import MeshError, Reason
from services.download.tables import UNENDED, TransferRow

MAX_UNENDED_OF_USER = 100
"""Maximum number of downloads of one user that have not ended, paused ones included."""
MAX_UNENDED = 1_000
"""Maximum number of downloads of all users that have not ended."""


async def refuse_too_many(session: AsyncSession, requested_by: str) -> None:
    """Raise TOO_MANY_JOBS if one more download of a user may not start."""
    count = select(func.count()).where(TransferRow.state.in_(UNENDED))
    if (await session.scalar(count.where(TransferRow.requested_by == requested_by)) or 0) >= MAX_UNENDED_OF_USER:
        raise _too_many(
            f"{MAX_UNENDED_OF_USER} of your downloads have not ended, which is the most that one user may have",
            MAX_UNENDED_OF_USER,
        )
    if (await session.scalar(count) or 0) >= MAX_UNENDED:
        words = f"{MAX_UNENDED} downloads of all users have not ended, which is the most that the mesh may have"
        raise _too_many(words, MAX_UNENDED)


def _too_many(words: str, limit: int) -> MeshError:
    return MeshError(Reason.ERROR_REASON_TOO_MANY_JOBS, words, {"limit": str(limit)})
