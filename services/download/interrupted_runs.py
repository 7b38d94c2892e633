"""Transfers whose run was interrupted: their row says that they run, and no process runs them any more.

A process that stops releases its claims; one that was killed leaves them. A run whose result could not be written leaves the claim of its
process, too. The worker queues such rows again before it does anything else, also while the store is away, so they are not shown as
running while they wait for a slot, and each kill is counted (`killed_runs`).

Invariant: a kill is counted once, and only if the claim is older than this process. Rows that another process has claimed stay as they are
until this one begins them: a process whose claim has expired may only be slow.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from services.download.retry_backoffs import attempt_of
from services.download.tables import TransferRow, TransferState
from services.download.transfer_run import TransferRuns
from services.download.transfers import Transfers


class InterruptedRuns:
    """Queues the rows that nobody runs any more."""

    def __init__(self, transfers: Transfers, runs: TransferRuns) -> None:
        self._transfers = transfers
        self._runs = runs
        self._first = True
        """Whether this process has not begun a transfer yet, so that each claim of its owner is that of an earlier one."""

    async def queue(self, rows: Sequence[TransferRow], running: Container[str]) -> list[TransferRow]:
        """Queue the interrupted ones of the workable rows, tell the watchers, and return all rows. `running` are those with a task."""
        queued: dict[str, TransferRow] = {}
        for row in rows:
            if row.state == TransferState.QUEUED or row.model_uuid in running or not self._transfers.claims.free(row):
                continue
            killed = self._first and bool(row.claimed_by)
            if (now := await self._transfers.requeue(*attempt_of(row), None, killed=killed)) is not None:
                queued[row.model_uuid] = now
                self._runs.broadcast(now)
        self._first = False
        return [queued.get(row.model_uuid, row) for row in rows]
