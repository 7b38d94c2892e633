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
from llamesh.kit.errors import MeshError, Reason, name_of
from llamesh.kit.logs import log
from llamesh.kit.outages import is_outage, until_written
from services.quant.job_changes import JobChanges
from services.quant.job_spec import CALIBRATION, spec_of
from services.quant.jobs import Job, Jobs
from services.quant.plan import next_of
from services.quant.states import JobState, StepKind, StepState
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

    async def clear(self, active: Collection[str], *, ended: str = "") -> None:
        """Remove the folders of all other jobs, except that of the job whose retry would go on where it failed."""
        home = self._settings.home
        others = set(await asyncio.to_thread(job_folders, home)) - set(active)
        if not others:
            return
        kept = await self._jobs.resumable()
        # Read last: the job to be kept may have been retried since the caller read the rows, and is active then.
        now = ({row.job_id for row in await self._jobs.active()} | set(active)) - {ended}
        for job_id in others - now:
            workspace = Workspace(home, job_id)
            if now or job_id != kept or await asyncio.to_thread(workspace.is_too_large):
                await asyncio.to_thread(workspace.remove)

    async def settle(self) -> None:
        """Do nothing: what a job leaves outside its rows and the bucket is in its folder."""

    async def run(self, job_id: str, attempt: int) -> float:
        """Run a job until it has ended or its row has changed. If a step has to wait for its next try, return the seconds until then."""
        while True:
            job = await _until_written(lambda: self._jobs.find(job_id))
            if job is None or not job.active or job.row.attempt != attempt:
                return 0
            step = next_of(job.steps)
            if isinstance(step, JobState):
                await self._end(job, step)
                return 0
            if wait := await self._take(job, step):
                return wait

    async def _end(self, job: Job, state: JobState) -> None:
        await _until_written(lambda: self._rows.end(job, state))
        log.info("job ended", job_id=job.row.job_id, state=state)

    async def _take(self, job: Job, step: QuantStepRow) -> float:
        """Run one step and write its result. Return the seconds until its next try; 0 if it has none."""
        key = job.key_of(step)
        stale = step.object_key if step.object_key != key else ""
        tries = await _until_written(lambda: self._rows.begin(job, step, object_key=stale or key))
        if not tries:
            return 0
        workspace, progress = Workspace(self._settings.home, job.row.job_id), StepProgress()
        try:
            if stale:
                # The row keeps the key of an earlier attempt until its object is gone.
                await self._variants.remove_object(stale)
                await _until_written(lambda: self._rows.begin(job, step, object_key=key))
            new = await self._prepared(job, step, workspace)
        except MeshError as error:
            outcome = Outcome(OUTAGE, reason=name_of(error.reason), message=error.message)
            return await self._write_outcome(job, step, outcome, progress, tries)
        except OSError as error:
            outcome = Outcome(OUTAGE, message=f"the folder of the job cannot be used: {error.strerror}")
            return await self._write_outcome(job, step, outcome, progress, tries)
        if new and step.kind != StepKind.FETCH:
            log.warning("the folder of a job is gone: it starts again from its source", job_id=job.row.job_id)
            await _until_written(lambda: self._rows.restart(job))
            return 0
        log.info("step begins", job_id=job.row.job_id, step=step.kind, type=step.type)
        outcome = await self._outcome(job, step, progress)
        wait = await self._write_outcome(job, step, outcome, progress, tries)
        if outcome.code == DONE and step.kind == StepKind.PUBLISH:
            # Its bytes are in the bucket now, and the row has their key.
            workspace.variant(step.type).unlink(missing_ok=True)
        return wait

    async def _prepared(self, job: Job, step: QuantStepRow, workspace: Workspace) -> bool:
        """Make the folder of a job ready for a step. Return whether the folder is new. Raises OSError."""
        new = await asyncio.to_thread(workspace.prepare, spec_of(job))
        if step.state != StepState.RUNNING:
            # Only an interrupted step may have a result that the service has missed.
            await asyncio.to_thread(workspace.forget_result, step.kind, step.type)
        if step.kind == StepKind.CONVERT and not step.tries:
            # Of an earlier attempt, whose failure may have its reason in it.
            await asyncio.to_thread(workspace.remove_sources)
        if step.kind == StepKind.IMATRIX and not job.row.matrix_source:
            text = await _until_written(lambda: self._jobs.calibration_text(job.row.job_id))
            await asyncio.to_thread(workspace.keep_calibration, text or CALIBRATION.read_text(encoding="utf-8"))
        return new

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

    async def _write_outcome(
        self, job: Job, step: QuantStepRow, outcome: Outcome, progress: StepProgress, tries: int
    ) -> float:
        """Write the result of a step. Return the seconds until its next try; 0 if it has none."""
        if outcome.code == DONE:
            await self._write_end(job, lambda: self._rows.succeed(job, step, outcome, progress))
            return 0
        again = tries < outcome.max_tries
        log.warning(
            "step failed", job_id=job.row.job_id, step=step.kind, type=step.type, again=again, error=outcome.words()
        )
        await self._write_end(job, lambda: self._rows.fail(job, step, outcome, again=again))
        return backoff(tries) if again else 0

    async def _write_end(self, job: Job, write: Callable[[], Awaitable[None]]) -> None:
        """Write the end of a step. On a full disk the job's files are removed first: only they may free the room for its row."""
        try:
            await to_completion(write())
        except MeshError as error:
            if not is_outage(error):
                raise
            if error.reason == Reason.ERROR_REASON_STORAGE_FULL:
                log.warning("the disk is full: the files of a job are removed", job_id=job.row.job_id)
                await asyncio.to_thread(Workspace(self._settings.home, job.row.job_id).remove)
            await _until_written(lambda: to_completion(write()))


async def _until_written(step: Callable[[], Awaitable[T]]) -> T:
    return await until_written(step, "write the state of a job")
