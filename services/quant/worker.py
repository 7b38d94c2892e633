"""The worker: runs the jobs whose rows are active, and cleans up after ended jobs.

Level-triggered: `_follow_rows` ends the jobs of users who may not have them any more, compares the rows with the running jobs, cancels a
run whose row has changed (cancelled, deleted, restarted), and starts others; users take turns. It is woken by a call that changed a row, by
a change of users' rights and by the end of a run; otherwise it runs every POLL_SECONDS, so a missed wake-up costs seconds. After a restart,
an interrupted job is found like all others. `_settle` removes what ended jobs have left elsewhere, objects without a record among it; it
may take long, so it is a task of its own.

Invariant: at most `Runs.at_once` jobs run, each once. What an ended job has left is removed only after its run has ended.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Protocol, TypeVar

from llamesh.background import BackgroundTask, backoff, sleep_or
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import log, report_failure
from llamesh.kit.rights import Rights
from services.quant.jobs import Jobs
from services.quant.step_process import StepProgress
from services.quant.step_rows import StepRows
from services.quant.submitters import refusal
from services.quant.tables import QuantJobRow, QuantStepRow
from services.quant.turns import next_job
from services.quant.variants import Variants

T = TypeVar("T")

POLL_SECONDS = 5.0
"""Seconds between two reads of the rows without a wake-up, and between two writes of progress."""
MAX_FAILURES = 5
"""Number of times that a run may fail in a row for a reason that is none of its steps, such as a bug or a value that no row takes."""


class Runs(Protocol):
    """An engine that runs jobs: on this machine (`job_run`), or on a cluster (`argo.runs`)."""

    at_once: int
    """Jobs that may run at the same time."""

    async def run(self, job_id: str, attempt: int) -> float:
        """Run a job until it has ended or its row has changed. If it has to wait for its next try, return the seconds until then.

        Cancelled if the row has changed, and at the end of the service.
        """

    async def clear(self, active: Collection[str], *, ended: str = "") -> None:
        """Remove at once what jobs that are not active have left on this machine. Idempotent.

        `ended`: a job that counts as one of these, whatever its row says.
        """

    async def settle(self) -> None:
        """Clean up elsewhere after jobs that have ended. Idempotent; may take long."""

    def progress(self, job_id: str) -> StepProgress | None:
        """Return the progress of the running step of a job, if it is newer than its row."""

    async def write_progress(self) -> None:
        """Write the progress of running steps to their rows."""


class JobWorker:
    """Runs the jobs of this process."""

    def __init__(self, jobs: Jobs, rows: StepRows, runs: Runs, variants: Variants, rights: Rights) -> None:
        self._rights = rights
        self._jobs = jobs
        self._rows = rows
        self._runs = runs
        self._variants = variants
        self._wake = asyncio.Event()
        self._running: dict[tuple[str, int], asyncio.Task[float]] = {}
        """The runs, by job and attempt."""
        self._waiting: dict[tuple[str, int], asyncio.TimerHandle] = {}
        """The runs that wait for their next try; they leave their place to other jobs."""
        self._failures = Counter[tuple[str, int]]()
        """How often in a row a run has failed for a reason that is none of its steps."""
        self._being_cleaned: set[str] = set()
        """The jobs whose remains are being removed: they do not begin meanwhile."""
        self._begun: set[str] = set()
        self._served: dict[str, int] = {}
        self._turn = 0
        self._background = [
            BackgroundTask(
                "follow jobs", self._follow_rows, report_failure, every=POLL_SECONDS, sleep=sleep_or(self._wake)
            ),
            BackgroundTask("follow rights", self._follow_rights, report_failure),
            BackgroundTask("write progress", runs.write_progress, report_failure, every=POLL_SECONDS),
            BackgroundTask("clean up after jobs", self._settle, report_failure, every=POLL_SECONDS),
        ]

    def wake(self) -> None:
        """Read the rows now: a call has changed one."""
        self._wake.set()

    async def end(self, job_id: str, write: Callable[[], Awaitable[T]]) -> T:
        """Write that a job has ended, and return what `write` returns.

        On a full disk its run is ended and its files are removed first: only they may free the room for its row.
        """
        try:
            return await write()
        except MeshError as error:
            if error.reason != Reason.ERROR_REASON_STORAGE_FULL:
                raise
        await self._stop([run for run in self._running if run[0] == job_id])
        active = await self._jobs.active()
        await self._runs.clear([row.job_id for row in active if row.job_id != job_id], ended=job_id)
        return await write()

    def progress(self, job_id: str) -> StepProgress | None:
        """Return the progress of the running step; None if the step belongs to another job."""
        return self._runs.progress(job_id)

    def start(self) -> None:
        """Start to work."""
        for task in self._background:
            task.start()

    async def close(self) -> None:
        """Stop the runs; the next process goes on with their jobs."""
        await asyncio.gather(*(task.close() for task in self._background))
        await self._stop(list(self._running))
        for timer in self._waiting.values():
            timer.cancel()

    async def _follow_rows(self) -> None:
        self._wake.clear()
        active, stuck = await self._allowed(await self._jobs.active())
        current = {(row.job_id, row.attempt) for row in active}
        await self._stop([run for run in self._running if run not in current])
        for run in [run for run in self._waiting if run not in current]:
            self._waiting.pop(run).cancel()
        await self._runs.clear([*(row.job_id for row in active), *stuck])
        self._begun &= {row.job_id for row in active}
        while len(self._running) < self._runs.at_once:
            busy = {job_id for job_id, _ in (*self._running, *self._waiting)} | self._being_cleaned
            row = next_job(active, busy, self._served, self._begun)
            if row is None:
                break
            self._begun.add(row.job_id)
            self._turn += 1
            self._served[row.requester_uid] = self._turn
            self._start((row.job_id, row.attempt))

    async def _allowed(self, active: Sequence[QuantJobRow]) -> tuple[Sequence[QuantJobRow], Sequence[str]]:
        """Return the jobs that may go on, and end all others. Also return the ids of those that have not ended.

        These do not run in this pass: their end cannot be written now. Their files stay, unless the disk is full (see `end`). A later pass
        decides again; other jobs do not wait for it. A job that a user has taken over meanwhile goes on; the next pass, at once, decides
        by its new row.
        """
        allowed, stuck = [], []
        for row in active:
            error = refusal(row, self._rights)
            if error is None:
                allowed.append(row)
                continue
            log.warning("job refused", job_id=row.job_id, error=error.message)
            try:
                if not await self.end(row.job_id, partial(self._rows.refuse, row, error)):
                    allowed.append(row)
                    self._wake.set()
            except Exception as failure:
                report_failure(f"end the job {row.job_id}", failure)
                stuck.append(row.job_id)
        return allowed, stuck

    async def _follow_rights(self) -> None:
        await self._rights.changed().wait()
        self._wake.set()

    def _start(self, run: tuple[str, int]) -> None:
        task = self._running[run] = asyncio.create_task(self._runs.run(*run))
        task.add_done_callback(lambda task: self._ended(run, task))

    def _ended(self, run: tuple[str, int], task: asyncio.Task[float]) -> None:
        del self._running[run]
        if task.cancelled():
            return
        if error := task.exception():
            self._failures[run] += 1
            log.error("run of a job failed", job_id=run[0], error=str(error), exc_info=error)
            if self._failures[run] < MAX_FAILURES:
                self._wait(run, backoff(self._failures[run]))
            else:
                self._running[run] = asyncio.create_task(self._given_up(run, error))
                self._running[run].add_done_callback(lambda task: self._ended(run, task))
            return
        self._failures.pop(run, None)
        if seconds := task.result():
            self._wait(run, seconds)
        self._wake.set()

    def _wait(self, run: tuple[str, int], seconds: float) -> None:
        """Let a run begin again after some seconds."""

        def again() -> None:
            self._waiting.pop(run, None)
            self._wake.set()

        self._waiting[run] = asyncio.get_running_loop().call_later(seconds, again)

    async def _given_up(self, run: tuple[str, int], error: BaseException) -> float:
        """Fail the next step of a job whose run fails again and again."""
        self._failures.pop(run, None)
        await self._rows.give_up(*run, f"the Quant service failed: {type(error).__name__}")
        return 0

    async def _stop(self, runs: Collection[tuple[str, int]]) -> None:
        """End runs and wait for their end."""
        tasks = [self._running[run] for run in runs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _settle(self) -> None:
        """Remove what ended jobs have left elsewhere. What cannot be removed now is tried again by a later pass."""
        await self._runs.settle()
        for step in await self._rows.unrecorded():
            if any(job_id == step.job_id for job_id, _ in self._running):
                continue
            self._being_cleaned.add(step.job_id)
            try:
                await self._remove_object(step)
            except MeshError as error:
                log.warning("object of an ended job is not removed", object=step.object_key, error=error.message)
            finally:
                self._being_cleaned.discard(step.job_id)
                self._wake.set()

    async def _remove_object(self, step: QuantStepRow) -> None:
        """Remove an object without a record. A retry may have taken the job up since its step was read."""
        if await self._rows.is_unrecorded(step):
            await self._variants.remove_object(step.object_key)
            await self._rows.forget_object(step)
