"""One run of a job: its steps one after the other, each as a program, until the job has ended.

The worker starts a run as a task and cancels the task if the job's row has changed. Invariant: a failure outside a step does not fail the
step: writes to an unavailable database are retried without limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from llamesh.background import backoff
from llamesh.kit.completion import to_completion
from llamesh.kit.config import Settings
from llamesh.kit.logs import log
from llamesh.kit.outages import until_written
from services.quant.job_changes import JobChanges
from services.quant.job_spec import CALIBRATION, spec_of
from services.quant.jobs import Job, Jobs
from services.quant.plan import next_of
from services.quant.states import JobState, StepKind
from services.quant.step_process import DONE, OUTAGE, Outcome, StepProcess, StepProgress
from services.quant.step_rows import StepRows
from services.quant.tables import QuantStepRow
from services.quant.variants import Variants
from services.quant.workspace import Workspace, job_folders

T = TypeVar("T")


class JobRuns:
    """Runs jobs on this machine."""

    at_once = 1
    """Jobs that run at the same time: a step uses all cores that it is given."""

    def __init__(self, settings: Settings, jobs: Jobs, rows: StepRows, variants: Variants, changes: JobChanges) -> None:
        self._settings = settings
        self._changes = changes
        self._jobs = jobs
        self._rows = rows
        self._variants = variants
        self._running: tuple[Job, QuantStepRow, StepProgress] | None = None

    def progress(self, job_id: str) -> StepProgress | None:
        """Return the progress of the running step; None if the step belongs to another job."""
        return self._running[2] if self._running and self._running[0].row.job_id == job_id else None

    async def write_progress(self) -> None:
        """Write the progress of the running step to its row."""
        if self._running:
            job, step, progress = self._running
            await self._rows.progress(job, step, progress.done, progress.total)

    async def clear(self, active: Collection[str]) -> None:
        """Remove the folders of all other jobs."""
        home = self._settings.home
        for job_id in set(await asyncio.to_thread(job_folders, home)) - set(active):
            await asyncio.to_thread(Workspace(home, job_id).remove)

    async def run(self, job_id: str, attempt: int) -> None:
        """Run a job until it has ended or its row has changed."""
        while True:
            job = await _until_written(lambda: self._jobs.find(job_id))
            if job is None or not job.active or job.row.attempt != attempt:
                return
            step = next_of(job.steps)
            if isinstance(step, JobState):
                await self._end(job, step)
                return
            await self._take(job, step)

    async def _end(self, job: Job, state: JobState) -> None:
        await _until_written(lambda: self._rows.end(job, state))
        log.info("job ended", job_id=job.row.job_id, state=state)

    async def _take(self, job: Job, step: QuantStepRow) -> None:
        """Run one step and write its result."""
        if step.error_reason:
            await asyncio.sleep(backoff(step.tries))
        key = job.key_of(step)
        if step.object_key not in ("", key):
            await self._variants.remove_object(step.object_key)
        if not await _until_written(lambda: self._rows.begin(job, step, object_key=key)):
            return
        workspace = Workspace(self._settings.home, job.row.job_id)
        try:
            new = await asyncio.to_thread(workspace.prepare, spec_of(job))
            if step.kind == StepKind.IMATRIX:
                text = await _until_written(lambda: self._jobs.calibration_text(job.row.job_id))
                await asyncio.to_thread(workspace.keep_calibration, text or CALIBRATION.read_text(encoding="utf-8"))
        except OSError as error:
            outcome = Outcome(OUTAGE, message=f"the folder of the job cannot be used: {error.strerror}")
            await self._settle(job, step, outcome, StepProgress())
            return
        if new and step.kind != StepKind.FETCH:
            log.warning("the folder of a job is gone: it starts again from its source", job_id=job.row.job_id)
            await _until_written(lambda: self._rows.restart(job))
            return
        log.info("step begins", job_id=job.row.job_id, step=step.kind, type=step.type)
        progress = StepProgress()
        outcome = await self._outcome(job, step, progress)
        await self._settle(job, step, outcome, progress)
        if outcome.code == DONE and step.kind == StepKind.PUBLISH:
            # Its bytes are in the bucket now, and the row has their key.
            workspace.variant(step.type).unlink(missing_ok=True)

    async def _outcome(self, job: Job, step: QuantStepRow, progress: StepProgress) -> Outcome:
        self._running = (job, step, progress)

        def count(done: int, total: int) -> None:
            progress.done, progress.total = done, total
            self._changes.announce(job.row.job_id)

        try:
            process = StepProcess(self._settings, step.kind, job.row.job_id, step.type)
            return await process.run(count)
        except OSError as error:
            return Outcome(OUTAGE, message=f"its program cannot be started: {error.strerror}")
        finally:
            self._running = None

    async def _settle(self, job: Job, step: QuantStepRow, outcome: Outcome, progress: StepProgress) -> None:
        if outcome.code == DONE:
            await _until_written(lambda: to_completion(self._rows.succeed(job, step, outcome, progress)))
            return
        again = step.tries + 1 < outcome.max_tries
        log.warning(
            "step failed", job_id=job.row.job_id, step=step.kind, type=step.type, again=again, error=outcome.words()
        )
        await _until_written(lambda: to_completion(self._rows.fail(job, step, outcome, again=again)))


async def _until_written(step: Callable[[], Awaitable[T]]) -> T:
    return await until_written(step, "write the state of a job")
