"""The jobs in SQL, as callers see and change them: create, read, cancel, retry, delete.

Calls change rows only; the worker compares its work with the rows (see `worker`), and `step_rows` has the transitions of a run.

Invariant: for one name and type there is at most one model, and at most one active job that makes it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from services.quant.job_changes import JobChanges
from services.quant.plan import is_published, steps_of
from services.quant.resets import go_on
from services.quant.states import ACTIVE, JobState, StepKind, StepState
from services.quant.tables import QuantJobRow, QuantModelRow, QuantStepRow
from services.quant.variant_objects import variant_key, variant_uuid

# A job may have 60 steps, and each takes time of the process that serves all callers.
_LISTING = Listing("quant jobs", BY_TIME, largest=100)
MAX_ACTIVE = 100
"""Maximum number of jobs of one user that have not ended."""
RESUMABLE = timedelta(hours=24)
"""Time for which the files of the job that failed last are kept, unless another job begins or the disk is short."""
_ORDER = (QuantJobRow.create_time, QuantJobRow.job_id)


@dataclass(frozen=True, slots=True)
class Job:
    """A job with its steps in their order."""

    row: QuantJobRow
    steps: Sequence[QuantStepRow]

    @property
    def active(self) -> bool:
        """Whether the job has not ended."""
        return self.row.state in ACTIVE

    def key_of(self, step: QuantStepRow) -> str:
        """Return the key of the object that a step publishes; empty if it publishes none, or the variant is not verified yet."""
        if step.kind != StepKind.PUBLISH:
            return ""
        verified = self.verified(step.type)
        return variant_key(self.row.job_id, step.type, verified["sha256"]) if verified else ""

    def verified(self, of_type: str) -> dict[str, Any]:
        """Return the result of the step `verify` of a type; empty if the variant is not verified yet."""
        return next(each.result for each in self.steps if each.kind == StepKind.VERIFY and each.type == of_type)


class Jobs:
    """The rows of jobs and steps. `clock` returns the time in UTC, `new_id` an id that no job has."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], changes: JobChanges, new_id: Callable[[], str]
    ) -> None:
        self._new_id = new_id
        self._database = database
        self._changes = changes
        self._clock = clock
        self._creating = asyncio.Lock()
        """Only this process writes the tables, so the lock is enough to keep two calls from making the same job or model."""

    async def create(self, wanted: QuantJobRow) -> Job:
        """Insert a job with its steps, or return the job that was created with the same request_id of its owner.

        Raises REQUEST_ID_REUSED, TOO_MANY_JOBS, and QUANT_MODEL_EXISTS if a variant exists or is being made.
        """
        wanted.job_id = self._new_id()
        async with self._creating:
            repeated = await self.repeated(wanted.owner_uid, wanted.request_id, wanted.request_digest)
            return repeated or await self._insert(wanted)

    async def repeated(self, owner_uid: str, request_id: str, digest: str) -> Job | None:
        """Return the job that a request has created before; None if it is new. Raises REQUEST_ID_REUSED if that was another request."""
        if not request_id:
            return None
        async with self._database.begin(guarded=False) as session:
            first = await session.scalar(
                select(QuantJobRow).where(QuantJobRow.owner_uid == owner_uid, QuantJobRow.request_id == request_id)
            )
            if first is not None and first.request_digest != digest:
                raise MeshError(
                    Reason.ERROR_REASON_REQUEST_ID_REUSED,
                    f"the request_id {request_id!r} has started the job {first.job_id} with another request",
                    {"requestId": request_id, "jobId": first.job_id},
                )
            return await _whole(session, first) if first else None

    async def _insert(self, wanted: QuantJobRow) -> Job:
        async with self._changes.writing(self._database, wanted.job_id) as session:
            await _refuse_present(session, wanted.name, wanted.types)
            await _refuse_too_many(session, wanted.requester_uid)
            wanted.create_time = wanted.update_time = self._clock()
            session.add(wanted)
            steps = steps_of(wanted.types, checkpoint=bool(wanted.source), importance_matrix=wanted.importance_matrix)
            for position, (kind, of_type) in enumerate(steps):
                session.add(
                    QuantStepRow(
                        job_id=wanted.job_id, position=position, kind=kind, type=of_type, state=StepState.WAITING
                    )
                )
            await session.flush()
            return await _whole(session, wanted)

    async def find(self, job_id: str) -> Job | None:
        """Return a job; None if there is none."""
        async with self._database.begin(guarded=False) as session:
            row = await session.get(QuantJobRow, job_id)
            return await _whole(session, row) if row else None

    async def get(self, job_id: str) -> Job:
        """Return a job. Raises QUANT_JOB_NOT_FOUND."""
        job = await self.find(job_id)
        if job is None:
            raise _not_found(job_id)
        return job

    async def page(self, page_query: PageQuery) -> tuple[Sequence[Job], str]:
        """Return a page, newest first, and the token of the next page."""
        page = page_query.of(_LISTING)
        async with self._database.begin(guarded=False) as session:
            found = (await session.scalars(page.select(select(QuantJobRow), _ORDER, backwards=True))).all()
            rows, token = page.cut(found, lambda row: (row.create_time, row.job_id))
            steps = await _steps_by_job(session, [row.job_id for row in rows])
        return [Job(row, steps[row.job_id]) for row in rows], token

    async def ids(self) -> Sequence[str]:
        """Return the ids of all jobs, newest first."""
        newest_first = (column.desc() for column in _ORDER)
        async with self._database.read() as session:
            return (await session.scalars(select(QuantJobRow.job_id).order_by(*newest_first))).all()

    async def of_ids(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """Return the jobs of these ids that exist."""
        async with self._database.begin(guarded=False) as session:
            rows = (await session.scalars(select(QuantJobRow).where(QuantJobRow.job_id.in_(job_ids)))).all()
            steps = await _steps_by_job(session, job_ids)
        return {row.job_id: Job(row, steps[row.job_id]) for row in rows}

    async def calibration_text(self, job_id: str) -> str:
        """Return the text that a job was given for its importance matrix; empty if it was given none."""
        async with self._database.read() as session:
            query = select(QuantJobRow.calibration_text).where(QuantJobRow.job_id == job_id)
            return await session.scalar(query) or ""

    async def active(self) -> Sequence[QuantJobRow]:
        """Return the jobs that have not ended, in the order in which they were submitted."""
        async with self._database.read() as session:
            return (
                await session.scalars(select(QuantJobRow).where(QuantJobRow.state.in_(ACTIVE)).order_by(*_ORDER))
            ).all()

    async def resumable(self) -> str:
        """Return the id of the job that failed last, if its retry may go on where it failed; empty if there is none."""
        query = select(QuantJobRow.job_id).where(
            QuantJobRow.state.in_((JobState.FAILED, JobState.PARTIAL)),
            QuantJobRow.update_time > self._clock() - RESUMABLE,
        )
        async with self._database.read() as session:
            return await session.scalar(query.order_by(QuantJobRow.update_time.desc()).limit(1)) or ""

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job. Idempotent, and without effect on a job that has ended. Raises QUANT_JOB_NOT_FOUND."""
        async with self._changes.writing(self._database, job_id) as session:
            row = await _locked(session, job_id)
            job = await _whole(session, row)
            if job.active:
                row.state = JobState.CANCELLED
                row.update_time = self._clock()
                for step in job.steps:
                    if step.state in (StepState.WAITING, StepState.RUNNING):
                        step.state = StepState.SKIPPED
            return job

    async def retry(self, job_id: str, requester_uid: str, *, matrix_version: str = "") -> Job:
        """Restart a job that ended without all its types. Idempotent. From now on it has the rights of the requester, also if it is active.

        `matrix_version` is the version of the matrix that it was given, if it is to be read again; empty: that of before.
        Raises QUANT_JOB_NOT_FOUND, QUANT_MODEL_EXISTS and TOO_MANY_JOBS.
        """
        async with self._creating, self._changes.writing(self._database, job_id) as session:
            row = await _locked(session, job_id)
            job = await _whole(session, row)
            if row.state == JobState.SUCCEEDED or (job.active and row.requester_uid == requester_uid):
                return job
            await _refuse_too_many(session, requester_uid)
            if job.active:
                row.requester_uid = requester_uid
                return job
            await _refuse_present(session, row.name, [each for each in row.types if not is_published(job.steps, each)])
            row.state = JobState.QUEUED
            row.attempt += 1
            row.requester_uid = requester_uid
            row.update_time = self._clock()
            row.matrix_version = matrix_version or row.matrix_version
            go_on(job.steps, given_matrix=bool(row.matrix_source))
            return job

    async def delete(self, job_id: str) -> Job:
        """Remove the rows of a job that has ended. Raises QUANT_JOB_NOT_FOUND and QUANT_JOB_NOT_ENDED."""
        async with self._changes.writing(self._database, job_id) as session:
            row = await _locked(session, job_id)
            job = await _whole(session, row)
            # Only these rows have the key of an object without a record, and the name of a workflow: they stay until the worker has removed
            # the object and stopped the workflow.
            left = row.workflow or any(step.object_key for step in job.steps)
            if job.active or left:
                state = row.state if job.active else "being cleaned up"
                raise MeshError(
                    Reason.ERROR_REASON_QUANT_JOB_NOT_ENDED,
                    f"the job {job_id} is {state}",
                    {"jobId": job_id, "state": state},
                    retry_after=None if job.active else 1,
                )
            session.expunge_all()
            await session.execute(delete(QuantStepRow).where(QuantStepRow.job_id == job_id))
            await session.execute(delete(QuantJobRow).where(QuantJobRow.job_id == job_id))
            return job


async def _refuse_too_many(session: AsyncSession, requester_uid: str) -> None:
    """Raise TOO_MANY_JOBS if as many jobs that have not ended have the rights of a user as may."""
    query = select(func.count()).where(QuantJobRow.state.in_(ACTIVE), QuantJobRow.requester_uid == requester_uid)
    if (await session.scalar(query) or 0) >= MAX_ACTIVE:
        raise MeshError(
            Reason.ERROR_REASON_TOO_MANY_JOBS,
            f"{MAX_ACTIVE} of your jobs have not ended, which is the most that one user may have",
            {"limit": str(MAX_ACTIVE)},
        )


async def _refuse_present(session: AsyncSession, name: str, types: Sequence[str]) -> None:
    """Raise QUANT_MODEL_EXISTS if one of these variants exists, or an active job makes it."""
    for each in types:
        uuid = variant_uuid(name, each)
        model = await session.get(QuantModelRow, uuid)
        if model is not None:
            raise _exists(f"the model {uuid} exists already", uuid, model.job_id, "exists")
    query = (
        select(QuantStepRow)
        .join(QuantJobRow, QuantJobRow.job_id == QuantStepRow.job_id)
        .where(
            QuantJobRow.state.in_(ACTIVE),
            QuantJobRow.name == name,
            QuantStepRow.kind == StepKind.PUBLISH,
            QuantStepRow.type.in_(types),
        )
    )
    step = (await session.scalars(query)).first()
    if step is not None:
        uuid = variant_uuid(name, step.type)
        raise _exists(f"the job {step.job_id} is making the model {uuid}", uuid, step.job_id, "making")


def _exists(message: str, model_uuid: str, job_id: str, rule: str) -> MeshError:
    known = {"modelUuid": model_uuid, "jobId": job_id, "rule": rule}
    return MeshError(Reason.ERROR_REASON_QUANT_MODEL_EXISTS, message, known)


async def _locked(session: AsyncSession, job_id: str) -> QuantJobRow:
    row = await session.get(QuantJobRow, job_id, with_for_update=True)
    if row is None:
        raise _not_found(job_id)
    return row


async def _whole(session: AsyncSession, row: QuantJobRow) -> Job:
    return Job(row, (await _steps_by_job(session, [row.job_id]))[row.job_id])


async def _steps_by_job(session: AsyncSession, job_ids: Sequence[str]) -> Mapping[str, Sequence[QuantStepRow]]:
    """Return the steps of jobs in their order; none for a job that does not exist."""
    query = select(QuantStepRow).where(QuantStepRow.job_id.in_(job_ids))
    found = defaultdict[str, list[QuantStepRow]](list)
    for step in await session.scalars(query.order_by(QuantStepRow.job_id, QuantStepRow.position)):
        found[step.job_id].append(step)
    return found


def _not_found(job_id: str) -> MeshError:
    return MeshError(Reason.ERROR_REASON_QUANT_JOB_NOT_FOUND, f"there is no job {job_id}", {"jobId": job_id})
