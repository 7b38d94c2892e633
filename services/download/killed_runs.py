"""Transfers whose process was killed while they ran: they begin one after the other, and fail if it happens again and again.

A source may make the process hang or take all its memory, so that it is killed, and the next process would begin the same transfer. A run
was killed if its row is still claimed and not queued when the transfer begins again: a process that stops releases its claims. The row has
the number of killed runs without a byte more than before (`note_kill`). With MAX_KILLED_RUNS of them the transfer fails.

A kill ends all transfers of the process. So that one of them does not take the others along, those that were killed are suspects: a process
begins one at a time, and the next once that has run for PROOF_SECONDS or has ended (`Suspects`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.errors import MeshError, Reason
from services.download.kept_parts import kept_bytes
from services.download.tables import TransferRow, TransferState

MAX_KILLED_RUNS = 3
"""Maximum number of runs in a row that are killed without progress."""
PROOF_SECONDS = 60.0
"""Seconds for which no other suspect begins beside one: a process that hangs is killed before."""


async def note_kill(session: AsyncSession, row: TransferRow) -> None:
    """Count the last run of a locked row that is about to begin, if it was killed."""
    if not _was_killed(row):
        return
    done = max(row.bytes_done, await kept_bytes(session, row))
    row.killed_runs = 1 if done > row.killed_bytes else row.killed_runs + 1
    row.killed_bytes = max(done, row.killed_bytes)


def refusal(row: TransferRow) -> MeshError | None:
    """Return why a transfer that has begun may not run: its runs were killed too often. None if it may."""
    if row.killed_runs < MAX_KILLED_RUNS:
        return None
    words = (
        f"the download service was killed {row.killed_runs} times in a row while it fetched this model, without a byte more:"
        " its source may send what the service cannot bear, or the machine has too little memory; see `llamesh logs download`"
    )
    return MeshError(Reason.ERROR_REASON_SOURCE_UNAVAILABLE, words, {"source": row.shown_source, "status": ""})


class Suspects:
    """Lets a process begin one suspect at a time. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._model_uuid = ""
        """The suspect that was allowed last; empty if there was none."""
        self._allowed_at = 0.0

    def allowed(self, due: Sequence[TransferRow], running: Container[str]) -> list[TransferRow]:
        """Return the transfers that may begin now: of the suspects the first one at most, and none beside one that is on trial."""
        on_trial = self._model_uuid in running and self._clock() - self._allowed_at < PROOF_SECONDS
        first = None if on_trial else next(filter(_is_suspect, due), None)
        if first is not None:
            self._model_uuid, self._allowed_at = first.model_uuid, self._clock()
        return [row for row in due if row is first or not _is_suspect(row)]


def _was_killed(row: TransferRow) -> bool:
    """Return whether the last run of a transfer that does not run was killed."""
    return row.state != TransferState.QUEUED and bool(row.claimed_by)


def _is_suspect(row: TransferRow) -> bool:
    return bool(row.killed_runs) or _was_killed(row)
