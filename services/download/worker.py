"""The worker: decides which transfers run in this process, and starts and stops them.

Level-triggered: `_follow_rows` compares the rows of the transfer table with its tasks, starts a task for each active row without one, and
cancels the tasks whose row has changed (cancelled, paused, started again, taken over). It is woken by a call that changed a row, the end of
a task, the end of the shortest wait and a change of the store's health; otherwise it runs every POLL_SECONDS, so a missed wake-up costs
seconds. It runs one pass at a time, because two passes would start the same row twice. Rows that no process runs any more are queued first
(see `interrupted_runs`). `cleanup` removes what ended transfers have left. Several processes share the work: see `claims`.

Invariant: a process runs no more transfers than it has slots, of one source all processes one, and those of one user leave a slot to others
(see `slots`). A process whose own store fails does not fail a transfer that another process might run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from llamesh.background import BackgroundTask, sleep_or
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.leases import RENEW_SECONDS
from llamesh.kit.logs import log, report_failure
from services.download import transfer_run
from services.download.cleanup import Cleanup
from services.download.interrupted_runs import InterruptedRuns
from services.download.kept_parts import KeptParts
from services.download.killed_runs import Suspects
from services.download.partial_objects import PartialObjects
from services.download.progress import Progress
from services.download.retry_backoffs import RetryBackoffs, TransferAttempt, attempt_of
from services.download.slots import SourceTurns, holders, wait_words
from services.download.store_health import StoreHealth
from services.download.tables import ACTIVE, TransferRow
from services.download.transfer_run import TransferRuns
from services.download.transfers import Transfers
from services.download.unowned_objects import UnownedObjects
from services.download.wait_notices import WaitNotices

POLL_SECONDS = 5.0
"""Seconds between two reads of the rows without a wake-up, and between two writes of progress."""
BROADCAST_SECONDS = 0.5
"""Seconds between two broadcasts of progress."""
SWEEP_SECONDS = 60.0
"""Seconds between two sweeps, which remove objects without a record, old parts of stopped transfers and waits of ended attempts."""

Rows = Sequence[TransferRow]


class Worker:
    """Runs the transfers of this process."""

    def __init__(
        self,
        transfers: Transfers,
        runs: TransferRuns,
        objects: UnownedObjects,
        health: StoreHealth,
        waits: RetryBackoffs,
        partial_objects: PartialObjects | None,
        kept_parts: KeptParts,
    ) -> None:
        self._transfers = transfers
        self._runs = runs
        self._objects = objects
        self._health = health
        self._waits = waits
        self._partial = partial_objects
        self._kept_parts = kept_parts
        self._turns = SourceTurns()
        self._suspects = Suspects(waits.clock)
        self._wake = asyncio.Event()
        self._tasks: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._stopped: set[str] = set()
        """Models whose task was cancelled; the state of their rows is still to be broadcast."""
        self._told_of_store: set[tuple[str, int, str]] = set()
        """Attempts whose rows already have the store's problem as their message."""
        self._interrupted = InterruptedRuns(transfers, runs)
        self._notices = WaitNotices(runs)
        self._cancelled: set[TransferAttempt] = set()
        """Attempts that were cancelled while the disk of the database was full; their rows are still to be written."""
        self._prepared = self._swept = False
        self._cleanup = Cleanup(self._remove_ended)
        self._timer: asyncio.TimerHandle | None = None
        """Wakes the loop at the end of the shortest wait. There is one, because each pass finds all waits again."""
        self._background = [
            BackgroundTask(
                "follow transfers", self._follow_rows, report_failure, every=POLL_SECONDS, sleep=sleep_or(self._wake)
            ),
            BackgroundTask("broadcast progress", runs.broadcast_progress, report_failure, every=BROADCAST_SECONDS),
            BackgroundTask("write progress", runs.write_progress, report_failure, every=POLL_SECONDS),
            BackgroundTask(
                "renew claims", self._renew_claims, report_failure, every=RENEW_SECONDS, longest=RENEW_SECONDS
            ),
            BackgroundTask("sweep objects", self._sweep, report_failure, every=SWEEP_SECONDS, immediately=False),
        ]

    def wake(self) -> None:
        """Read the rows now: a call has changed one."""
        self._health.check_now()
        self._wake.set()

    def progress(self, model_uuid: str) -> Progress | None:
        """Return the progress of a transfer that is being fetched; None if it is not."""
        return self._runs.progress(model_uuid)

    def wait_words(self, model_uuid: str) -> str:
        """Return for what a queued transfer waits, for people (see `wait_notices`); "" for none of it."""
        return self._notices.words(model_uuid)

    async def cancel(self, model_uuid: str) -> TransferRow:
        """Cancel a transfer. If the disk of the database is full, its run is ended and its bytes are removed before the row is written.

        Raises DOWNLOAD_NOT_FOUND, and the error of the database; after STORAGE_FULL the row is written as soon as there is room.
        """
        try:
            return await self._transfers.cancel(model_uuid)
        except MeshError as error:
            if error.reason != Reason.ERROR_REASON_STORAGE_FULL:
                raise
        row = await self._transfers.get(model_uuid)
        self._cancelled.add(attempt_of(row))
        if model_uuid in self._tasks:
            _, task = self._tasks[model_uuid]
            _cancel(task)
            await asyncio.wait({task})
        if self._partial is not None:
            await self._partial.free(row)
        return await self._write_cancellation(attempt_of(row))

    def start(self) -> None:
        """Start to work."""
        self._health.on_change(self._wake.set)
        self._runs.holds.on_release(self._wake.set)
        self._health.start()
        for task in self._background:
            task.start()

    async def close(self) -> None:
        """Stop every transfer and release its claim, so that another or the next process starts it again."""
        await asyncio.gather(self._health.close(), *(task.close() for task in self._background))
        await self._cleanup.close()
        self._set_timer(0.0)
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            _cancel(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._transfers.claims.release()
        except Exception as error:
            report_failure("release claims", error)

    async def _follow_rows(self) -> None:
        self._wake.clear()
        while self._stopped:
            await self._broadcast_end(self._stopped.pop())
        for attempt in list(self._cancelled):
            await self._try_cancellation(attempt)
        rows = [row for row in await self._transfers.workable() if attempt_of(row) not in self._cancelled]
        wanted = {attempt_of(row) for row in rows}
        for model_uuid, (number, task) in self._tasks.items():
            if (model_uuid, number) not in wanted:
                _cancel(task)
        rows = await self._interrupted.queue(rows, self._tasks)
        if not self._health.usable:
            await self._await_store(rows)
            return
        self._told_of_store.clear()
        if not self._prepared:
            await self._objects.drop_holds()
            self._prepared = True
        await self._cleanup.run()
        running = [row for row in rows if row.model_uuid in self._tasks]
        self._turns.keep({row.source for row in rows})
        due = self._due(rows)
        elsewhere = await self._transfers.claims.held_elsewhere() if due else ()
        held = self._holders(due, rows, elsewhere)
        startable = [row for row in due if row.model_uuid not in held]
        for row in self._suspects.begin_next(startable, running, self._turns.last):
            self._turns.begin(row)
            self._runs.holds.begin(row.model_uuid)
            task = asyncio.create_task(self._runs.run(attempt_of(row)))
            self._tasks[row.model_uuid] = (row.attempt, task)
            task.add_done_callback(partial(self._end, row.model_uuid))
        due = [row for row in due if row.model_uuid not in self._tasks]
        taken = [*(row for row in rows if row.model_uuid in self._tasks), *self._suspects.waiting]
        words = wait_words(due, taken, self._holders(due, rows, elsewhere)) | self._suspects.wait_words()
        await self._notices.show(words, self._tasks)

    async def _write_cancellation(self, attempt: TransferAttempt) -> TransferRow:
        row = await self._transfers.cancel(*attempt)
        self._cancelled.discard(attempt)
        return row

    async def _try_cancellation(self, attempt: TransferAttempt) -> None:
        """Write a cancellation that could not be written, and broadcast it. A failure is left to the next pass."""
        try:
            self._runs.broadcast(await self._write_cancellation(attempt))
        except MeshError as error:
            if error.reason == Reason.ERROR_REASON_DOWNLOAD_NOT_FOUND:
                self._cancelled.discard(attempt)
            report_failure("cancel a transfer", error)

    async def _broadcast_end(self, model_uuid: str) -> None:
        """Broadcast the state of a stopped transfer: its last progress may have been broadcast after its row changed."""
        try:
            await self._runs.broadcast_end(model_uuid)
        except BaseException:
            self._stopped.add(model_uuid)
            raise

    async def _await_store(self, rows: Rows) -> None:
        """While the store cannot be used: write the reason to each row that has no task, or fail it if waiting does not help."""
        self._notices.clear()
        if (error := self._health.problem) is None or self._health.check_pending:
            return
        hopeless = self._health.denied or self._health.outage_seconds > transfer_run.STORE_PATIENCE_SECONDS
        for row in (row for row in rows if row.model_uuid not in self._tasks):
            if hopeless and (row.claimed_by == self._transfers.claims.owner_id or not self._transfers.claims.shared):
                await self._runs.fail(row, error)
            elif (key := (row.model_uuid, row.attempt, str(error))) not in self._told_of_store:
                await self._runs.requeue_for_store(row, error)
                self._told_of_store.add(key)

    async def _remove_ended(self) -> None:
        """Remove what ended transfers have left; the first time also what an earlier process has left."""
        if not self._swept:
            await self._sweep_objects()
            self._swept = True
        if self._partial is not None:
            await self._partial.remove_ended(self._tasks)

    def _due(self, rows: Rows) -> list[TransferRow]:
        """Return the rows without a task whose waits have ended, and set the timer for the first of those whose wait ends by itself."""
        lefts = [(self._waits.seconds_left(attempt_of(row)), row) for row in rows if row.model_uuid not in self._tasks]
        self._set_timer(min((left for left, _ in lefts if left > 0), default=0.0))
        return [row for left, row in lefts if left <= 0]

    def _holders(self, due: Rows, rows: Rows, elsewhere: Rows) -> dict[str, str]:
        """Return for which transfers of their sources rows that are due must wait. `elsewhere` are those of other processes."""
        running = [row for row in rows if row.model_uuid in self._tasks and self._runs.holds.holds(row.model_uuid)]
        others = [row for row in rows if row.model_uuid not in self._tasks]
        return holders(due, running, [row for row in others if self._waits.awaits_retry(attempt_of(row))], elsewhere)

    def _set_timer(self, seconds: float) -> None:
        """Wake the loop in so many seconds instead of when the timer was set for; with 0 not at all."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wake.set) if seconds > 0 else None

    def _end(self, model_uuid: str, task: asyncio.Task[None]) -> None:
        del self._tasks[model_uuid]
        self._runs.holds.end(model_uuid)
        if task.cancelled():
            self._stopped.add(model_uuid)
        elif error := task.exception():
            # The failure could not be written either: the row is still active, so the next pass starts it again.
            log.error("transfer not settled", model_uuid=model_uuid, error=str(error))
            return
        self._wake.set()

    async def _renew_claims(self) -> None:
        if self._tasks or self._waits.of_source:
            await self._transfers.claims.renew([*self._runs.holds.all(), *self._waits.awaiting_source()])
            await self._objects.renew()

    async def _sweep(self) -> None:
        await self._forget_waits()
        for row in await self._kept_parts.give_up_old():
            log.info("the parts of a stopped transfer are given up", model_uuid=row.model_uuid, state=row.state)
            self._runs.broadcast(row)
        if self._health.usable:
            await self._sweep_objects()

    async def _sweep_objects(self) -> None:
        await self._objects.sweep()
        if self._partial is not None:
            await self._partial.sweep()

    async def _forget_waits(self) -> None:
        """Drop the waits of attempts that this worker did not end: attempts that were cancelled, deleted or ended by another process."""
        for attempt in self._waits.attempts():
            row = await self._transfers.find(attempt.model_uuid)
            if row is None or attempt_of(row) != attempt or row.state not in ACTIVE:
                self._waits.forget(attempt)


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a transfer once: a second cancellation would interrupt the cleanup after the first."""
    if not task.cancelling():
        task.cancel()
