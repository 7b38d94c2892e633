"""The worker: runs the jobs whose rows are active, and cleans up after ended jobs.

Level-triggered: `_follow_rows` compares the rows with the running job, starts the oldest active job, cancels a run whose row has changed
(cancelled, deleted, restarted), and removes the folders of jobs that are not active and the objects that they published without a record.
It is woken by a call that changed a row and by the end of a run; otherwise it runs every POLL_SECONDS, so a missed wake-up costs seconds.
After a restart, an interrupted job is found like all others.

Invariant: one job runs at a time. The files of an ended job are removed only after its run has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from llamesh.background import BackgroundTask, sleep_or
from llamesh.kit.logs import log, report_failure
from services.quant.job_run import JobRuns
from services.quant.jobs import Jobs
from services.quant.step_process import StepProgress
from services.quant.step_rows import StepRows
from services.quant.variants import Variants
from services.quant.workspace import Workspace, job_folders

POLL_SECONDS = 5.0
"""Seconds between two reads of the rows without a wake-up, and between two writes of progress."""


class JobWorker:
    """Runs the jobs of this process."""

    def __init__(self, home: Path, jobs: Jobs, rows: StepRows, runs: JobRuns, variants: Variants) -> None:
        self._home = home
        self._jobs = jobs
        self._rows = rows
        self._runs = runs
        self._variants = variants
        self._wake = asyncio.Event()
        self._running: tuple[str, int] | None = None
        self._task: asyncio.Task[None] | None = None
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
        """Stop the running step; the next process starts it again."""
        await asyncio.gather(*(task.close() for task in self._background))
        await self._stop()

    async def _follow_rows(self) -> None:
        self._wake.clear()
        active = await self._jobs.active()
        if self._running and self._running not in {(row.job_id, row.attempt) for row in active}:
            await self._stop()
        await self._clear({row.job_id for row in active})
        if self._task is None and active:
            self._start(active[0].job_id, active[0].attempt)

    def _start(self, job_id: str, attempt: int) -> None:
        self._running = (job_id, attempt)
        self._task = asyncio.create_task(self._runs.run(job_id, attempt))
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = self._running = None
        if not task.cancelled() and (error := task.exception()):
            # The job is still active, so a later pass starts it again. Not at once: a bug would then make it restart without a pause.
            log.error("run of a job failed", error=str(error), exc_info=error)
            return
        self._wake.set()

    async def _stop(self) -> None:
        """End the run and wait for its end."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _clear(self, active: Iterable[str]) -> None:
        """Remove the remains of ended jobs: their folders, and objects without a model."""
        for job_id in set(await asyncio.to_thread(job_folders, self._home)) - set(active):
            await asyncio.to_thread(Workspace(self._home, job_id).remove)
        for step in await self._rows.unrecorded():
            await self._variants.remove_object(step.object_key)
            await self._rows.forget_object(step)
