"""The transitions of a run: the rows of the steps as the worker writes them while it runs a job.

Invariant: every transition names the attempt of the job. It changes nothing if the job was cancelled or restarted in the meantime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason, name_of
from services.quant.job_changes import JobChanges
from services.quant.jobs import Job
from services.quant.output_text import printable
from services.quant.plan import next_of
from services.quant.resets import start_again
from services.quant.states import ACTIVE, JobState, StepKind, StepState
from services.quant.step_process import MAX_LOG, Outcome, StepProgress
from services.quant.tables import QuantJobRow, QuantModelRow, QuantStepRow
from services.quant.variant_objects import variant_uuid

_MAX_MESSAGE = 2_000
_UNRECORDED = (
    select(QuantStepRow)
    .join(QuantJobRow, QuantJobRow.job_id == QuantStepRow.job_id)
    .where(QuantStepRow.object_key != "", QuantJobRow.state.not_in(ACTIVE), QuantJobRow.workflow == "")
)


class StepRows:
    """Writes the rows of a job's steps. `clock` returns the time in UTC."""

    def __init__(self, database: Database, clock: Callable[[], datetime], changes: JobChanges) -> None:
        self._database = database
        self._changes = changes
        self._clock = clock

    async def begin(self, job: Job, step: QuantStepRow, *, object_key: str = "") -> int:
        """Write that a step runs, and return the number of this try, from 1; 0 if the job was cancelled or restarted meanwhile.

        An interrupted step does not count as another try. `object_key` is the object that it may publish.
        """
        async with self._changes.writing(self._database, job.row.job_id) as session:
            row = await self._current(session, job, step)
            if row is None:
                return 0
            row.tries += row.state != StepState.RUNNING
            row.state = StepState.RUNNING
            row.done = row.total = 0
            row.object_key = object_key
            row.start_time, row.end_time = self._clock(), None
            return row.tries

    async def progress(self, job: Job, step: QuantStepRow, done: int, total: int) -> None:
        """Write the progress of a step."""
        async with self._changes.writing(self._database, job.row.job_id) as session:
            row = await self._current(session, job, step)
            if row is not None:
                row.done, row.total = done, total

    async def succeed(self, job: Job, step: QuantStepRow, outcome: Outcome, progress: StepProgress) -> None:
        """End a step; a step `publish` records its model in the same transaction."""
        async with self._changes.writing(self._database, job.row.job_id) as session:
            row = await self._current(session, job, step)
            if row is None:
                return
            row.state = StepState.SUCCEEDED
            row.done, row.total = progress.done, progress.total
            row.result = outcome.result
            row.error_reason = row.error_message = ""
            row.log, row.end_time = printable(outcome.log)[-MAX_LOG:], self._clock()
            if row.kind == StepKind.PUBLISH:
                await session.merge(self._model_of(job, row))
                row.object_key = ""

    async def report(self, job: Job, step: QuantStepRow, progress: StepProgress, *, tries: int, log: str) -> None:
        """Write what a cluster says of a step that has not ended."""
        async with self._changes.writing(self._database, job.row.job_id) as session:
            row = await self._current(session, job, step)
            if row is not None:
                row.done, row.total, row.tries, row.log = (
                    progress.done,
                    progress.total,
                    tries,
                    printable(log)[:MAX_LOG],
                )

    async def fail(self, job: Job, step: QuantStepRow, outcome: Outcome, *, again: bool = False) -> None:
        """End a step with an error, or with `again` let it wait for its next try."""
        async with self._changes.writing(self._database, job.row.job_id) as session:
            row = await self._current(session, job, step)
            if row is None:
                return
            row.state = StepState.WAITING if again else StepState.FAILED
            row.error_reason, row.error_message = _reason_of(outcome), printable(outcome.words())[:_MAX_MESSAGE]
            row.log, row.end_time = printable(outcome.log)[-MAX_LOG:], self._clock()
            if not again:
                await self._skip_after(session, row)

    async def give_up(self, job_id: str, attempt: int, words: str) -> None:
        """Fail the next step of a job, for a reason that is none of the step."""
        async with self._changes.writing(self._database, job_id) as session:
            job = await session.get(QuantJobRow, job_id, with_for_update=True)
            step = next_of(await _steps(session, job_id))
            if job is None or job.state not in ACTIVE or job.attempt != attempt or isinstance(step, JobState):
                return
            step.state, step.end_time = StepState.FAILED, self._clock()
            step.error_reason, step.error_message = "INTERNAL", words
            await self._skip_after(session, step)

    async def refuse(self, read: QuantJobRow, error: MeshError) -> bool:
        """End a job that may not go on: its next step gets the error, others that have not ended are skipped. Return whether it has ended.

        `read` is its row as the decision has read it. Nothing is written if the job has another attempt or the rights of another user now.
        """
        async with self._changes.writing(self._database, read.job_id) as session:
            job = await session.get(QuantJobRow, read.job_id, with_for_update=True)
            if job is None or job.state not in ACTIVE:
                return True
            if (job.attempt, job.requester_uid) != (read.attempt, read.requester_uid):
                return False
            steps = await _steps(session, job.job_id)
            refused = next_of(steps)
            if not isinstance(refused, JobState):
                for step in steps:
                    if step.state in (StepState.WAITING, StepState.RUNNING):
                        step.state = StepState.SKIPPED
                refused.state, refused.end_time = StepState.FAILED, self._clock()
                refused.error_reason, refused.error_message = name_of(error.reason), error.message
            ended = next_of(steps)
            assert isinstance(ended, JobState), "no step is left"
            job.state, job.update_time = ended, self._clock()
            return True

    async def restart(self, job: Job) -> None:
        """Reset a job to its source, because its folder is gone; published types stay."""
        async with self._changes.writing(self._database, job.row.job_id) as session:
            if await self._current(session, job, job.steps[0]) is not None:
                start_again(await _steps(session, job.row.job_id))

    async def end(self, job: Job, state: JobState) -> None:
        """End a job."""
        async with self._changes.writing(self._database, job.row.job_id) as session:
            if await self._current(session, job, job.steps[0]) is not None:
                row = await session.get(QuantJobRow, job.row.job_id)
                assert row is not None, "it is current"
                row.state = state
                if state == JobState.SUCCEEDED:
                    # Only a retry would read it again.
                    row.calibration_text = ""

    async def unrecorded(self) -> Sequence[QuantStepRow]:
        """Return the steps of ended jobs that may have left an object without a record. A workflow may still write one."""
        async with self._database.read() as session:
            return (await session.scalars(_UNRECORDED)).all()

    async def is_unrecorded(self, step: QuantStepRow) -> bool:
        """Whether a step of `unrecorded` is still one."""
        same = (QuantStepRow.job_id == step.job_id, QuantStepRow.object_key == step.object_key)
        async with self._database.read() as session:
            return await session.scalar(_UNRECORDED.where(*same)) is not None

    async def forget_object(self, step: QuantStepRow) -> None:
        """Write that a step has left no object, unless its job was restarted."""
        async with self._database.begin() as session:
            job = await session.get(QuantJobRow, step.job_id, with_for_update=True)
            row = await session.get(QuantStepRow, (step.job_id, step.position))
            if job is not None and row is not None and job.state not in ACTIVE:
                row.object_key = ""

    async def _current(self, session: AsyncSession, job: Job, step: QuantStepRow) -> QuantStepRow | None:
        """Return the row of a step if its job is active and at the same attempt, and mark the job as running."""
        row = await session.get(QuantJobRow, job.row.job_id, with_for_update=True)
        if row is None or row.state not in ACTIVE or row.attempt != job.row.attempt:
            return None
        row.state = JobState.RUNNING
        row.update_time = self._clock()
        return await session.get(QuantStepRow, (step.job_id, step.position))

    async def _skip_after(self, session: AsyncSession, failed: QuantStepRow) -> None:
        for row in await _steps(session, failed.job_id):
            if row.position > failed.position and row.state == StepState.WAITING and failed.type in ("", row.type):
                row.state = StepState.SKIPPED

    def _model_of(self, job: Job, step: QuantStepRow) -> QuantModelRow:
        verified = job.verified(step.type)
        uuid = variant_uuid(job.row.name, step.type)
        return QuantModelRow(
            model_uuid=uuid,
            name=f"{uuid}.gguf",
            object_key=step.object_key,
            size_bytes=verified["size"],
            sha256=verified["sha256"],
            quantisation=step.type,
            source_model_uuid=job.row.model_uuid,
            source=job.row.shown_source,
            source_sha256=job.row.source_sha256,
            job_id=job.row.job_id,
            report=verified["report"],
            create_time=self._clock(),
        )


def _reason_of(outcome: Outcome) -> str:
    """Return the name of the reason of a failure; programs report reasons by name."""
    known = f"ERROR_REASON_{outcome.reason}" in Reason.keys()  # noqa: SIM118 - no mapping
    return outcome.reason if known else "QUANTISATION_FAILED"


async def _steps(session: AsyncSession, job_id: str) -> Sequence[QuantStepRow]:
    query = select(QuantStepRow).where(QuantStepRow.job_id == job_id).order_by(QuantStepRow.position)
    return (await session.scalars(query)).all()
