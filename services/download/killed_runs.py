"""Transfers whose process was killed while they ran: they begin one after the other, and fail if it happens again and again.

A source may make the process hang or take all its memory, so that it is killed, and the next process would begin the same transfer. A run
was killed if its row is claimed and not queued although the process that claimed it is another one, or this one in an earlier life: a
process that stops releases its claims. The row has the number of killed runs without a byte more than before (`note_run`), which counts
when the row is queued (`interrupted_runs`) or taken over. With MAX_KILLED_RUNS of them the transfer fails. A run whose claim could not be
released because the database was away counts, too.

A kill ends all transfers of the process. So that one of them does not take the others along, those that were killed are suspects: a process
begins one at a time, and the next once that has run for PROOF_SECONDS or has ended (`Suspects`).

Invariant: a suspect that waits keeps the slot that it would have, so newer transfers of its user do not take it, and no suspect without a
slot stops another one that has one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.errors import MeshError, Reason
from services.download.kept_parts import kept_bytes
from services.download.slots import begin_next, holders
from services.download.tables import TransferRow, TransferState

MAX_KILLED_RUNS = 3
"""Maximum number of runs in a row that are killed without progress."""
MAX_KILLED_COMPLETE_RUNS = 10
"""Maximum number of such runs if one of them had all bytes: what is left is to verify and to publish them, which costs no source."""
PROOF_SECONDS = 60.0
"""Seconds for which no other suspect begins beside one: a process that hangs is killed before."""


async def note_run(session: AsyncSession, row: TransferRow, owner_id: str, *, killed: bool = False) -> None:
    """Note in a locked row that its last run, if it had one since it was queued, was interrupted; only kept bytes are done then.

    `killed` says that an earlier process with the id of this one was killed while it ran; that of another process was in any case.
    """
    kept = await kept_bytes(session, row)
    if row.state != TransferState.QUEUED:
        row.resume_count += 1
        if killed or row.claimed_by not in ("", owner_id):
            done = max(row.bytes_done, kept)
            row.killed_runs = 1 if done > row.killed_bytes else row.killed_runs + 1
            row.killed_bytes = max(done, row.killed_bytes)
    row.bytes_done = kept


def refusal(row: TransferRow) -> MeshError | None:
    """Return why a transfer that has begun may not run: its runs were killed too often. None if it may."""
    complete = 0 < row.bytes_total <= row.killed_bytes
    if row.killed_runs < (MAX_KILLED_COMPLETE_RUNS if complete else MAX_KILLED_RUNS):
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
        """The suspect that has begun last; empty if there was none."""
        self._begun_at = 0.0
        self.waiting: list[TransferRow] = []
        """The suspects that have a slot and wait for the one that has begun last."""

    def begin_next(
        self, due: Sequence[TransferRow], running: Sequence[TransferRow], last_turn: Callable[[TransferRow], int]
    ) -> list[TransferRow]:
        """Return the transfers that begin now (see `slots`): of the suspects that get a slot the first one, if none is on trial."""
        suspects = [row for row in begin_next(due, running, last_turn) if _is_suspect(row)]
        on_trial = self._clock() - self._begun_at < PROOF_SECONDS and any(
            row.model_uuid == self._model_uuid for row in running
        )
        first = [] if on_trial else suspects[:1]
        for row in first:
            self._model_uuid, self._begun_at = row.model_uuid, self._clock()
        self.waiting = suspects[len(first) :]
        others = [row for row in due if not _is_suspect(row)]
        held = holders(others, first, ())
        free = [row for row in others if row.model_uuid not in held]
        return [*first, *begin_next(free, [*running, *suspects], last_turn)]

    def wait_words(self) -> dict[str, str]:
        """Return for what the suspects wait that have a slot, for people, by model."""
        words = (
            f"waits until the download of {self._model_uuid} has run for a minute: the service was killed during both"
        )
        return {row.model_uuid: words for row in self.waiting}


def _is_suspect(row: TransferRow) -> bool:
    """Return whether a transfer that does not run was killed, or is found to be killed when it begins."""
    return bool(row.killed_runs) or (row.state != TransferState.QUEUED and bool(row.claimed_by))
