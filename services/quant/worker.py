"""The worker: runs the jobs whose rows are active, and cleans up after ended jobs.

Level-triggered: `_follow_rows` compares the rows with the running jobs, starts the oldest active ones, cancels a run whose row has changed
(cancelled, deleted, restarted), and removes what ended jobs have left, objects that they published without a record among it.
It is woken by a call that changed a row and by the end of a run; otherwise it runs every POLL_SECONDS, so a missed wake-up costs seconds.
After a restart, an interrupted job is found like all others.

Invariant: at most `Runs.at_once` jobs run, each once. What an ended job has left is removed only after its run has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

from llamesh.background import BackgroundTask, sleep_or
from llamesh.kit.logs import log, report_failure
from services.quant.jobs import Jobs
from services.quant.step_process import StepProgress
from services.quant.step_rows import StepRows
from services.quant.variants import Variants

POLL_SECONDS = 5.0
"""Seconds between two reads of the rows without a wake-up, and between two writes of progress."""


class Runs(Protocol):
    """An engine that runs jobs: on this machine (`job_run`), or on a cluster (`argo.runs`)."""

    at_once: int
    """Jobs that may run at the same time."""

    async def run(self, job_id: str, attempt: int) -> None:
        """Run a job until it has ended or its row has changed. Cancelled if the row has changed, and at the end of the service."""

    async def clear(self, active: Collection[str]) -> None:
        """Remove what jobs that are not active have left outside their rows. Idempotent."""

    def progress(self, job_id: str) -> StepProgress | None:
        """Return the progress of the running step of a job, if it is newer than its row."""

    async def write_progress(self) -> None:
        """Write the progress of running steps to their rows."""


class JobWorker:
    """Runs the jobs of this process."""

    def __init__(self, jobs: Jobs, rows: StepRows, runs: Runs, variants: Variants) -> None:
        self._jobs = jobs
        self._rows = rows
        self._runs = runs
        self._variants = variants
        self._wake = asyncio.Event()
        self._running: dict[tuple[str, int], asyncio.Task[None]] = {}
        """The runs, by job and attempt."""
        self._background = [
            BackgroundTask(
                "follow jobs", self._follow_rows, report_failure, every=POLL_SECONDS, sleep=sleep_or(self._wake)
            ),
            BackgroundTask("write progress", runs.write_progress, report_failure, every=POLL_SECONDS),
        ]

    def wake(self) -> None:
        """Read the rows now: a call has changed one."""
        self._wake.set()

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

    async def _follow_rows(self) -> None:
        self._wake.clear()
        active = [(row.job_id, row.attempt) for row in await self._jobs.active()]
        await self._stop([run for run in self._running if run not in active])
        await self._clear([job_id for job_id, _ in active])
        for run in active:
            if len(self._running) < self._runs.at_once and run not in self._running:
                self._start(run)

    def _start(self, run: tuple[str, int]) -> None:
        task = self._running[run] = asyncio.create_task(self._runs.run(*run))
        task.add_done_callback(lambda task: self._ended(run, task))

    def _ended(self, run: tuple[str, int], task: asyncio.Task[None]) -> None:
        del self._running[run]
        if not task.cancelled() and (error := task.exception()):
            # The job is still active, so a later pass starts it again. Not at once: a bug would then make it restart without a pause.
            log.error("run of a job failed", error=str(error), exc_info=error)
            return
        self._wake.set()

    async def _stop(self, runs: Collection[tuple[str, int]]) -> None:
        """End runs and wait for their end."""
        tasks = [self._running[run] for run in runs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _clear(self, active: Collection[str]) -> None:
        """Remove what ended jobs have left, and objects without a model."""
        await self._runs.clear(active)
        for step in await self._rows.unrecorded():
            await self._variants.remove_object(step.object_key)
            await self._rows.forget_object(step)
