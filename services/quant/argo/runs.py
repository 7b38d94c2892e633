"""Runs each job as one workflow of Argo: submits it, and writes into the rows what the cluster reports.

Level-triggered: a pass reads the job and its workflow, and writes the difference. The service may end at any time: the pods go on, and the
next process finds their workflow by the name in the job's row.

Invariant: a job is judged by its rows. The phase of a workflow only ends steps of which the cluster says nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import Any

from llamesh.background import backoff
from llamesh.kit.completion import to_completion
from llamesh.kit.errors import MeshError, name_of
from llamesh.kit.logs import log
from llamesh.kit.outages import is_outage, until_written
from services.quant.argo.changes import Change, next_change
from services.quant.argo.cluster import Cluster, ClusterOutageError, ClusterRefusedError
from services.quant.argo.submission import Submission
from services.quant.argo.tasks import completed, has_begun, task_state
from services.quant.argo.workflow import workflow_name
from services.quant.argo.workflow_rows import WorkflowRows
from services.quant.jobs import Job, Jobs
from services.quant.output_text import printable
from services.quant.plan import is_published, next_of, unpublished
from services.quant.states import JobState, StepKind, StepState
from services.quant.step_process import DONE, MAX_LOG, REFUSED, Outcome, StepProgress
from services.quant.step_rows import StepRows
from services.quant.submitters import REASONS
from services.quant.variant_objects import variant_key

GRACE = timedelta(minutes=2)
"""Time that a workflow gets to end by itself once its job has ended. After it, the workflow is stopped."""
POLL_SECONDS = 2.0
"""Seconds between two reads of a workflow. Argo reports progress less often."""


class ArgoRuns:
    """The jobs that run on a cluster."""

    at_once = 16
    """Jobs that are followed at the same time. The cluster decides when their pods run."""

    def __init__(
        self,
        jobs: Jobs,
        rows: StepRows,
        workflows: WorkflowRows,
        cluster: Cluster,
        submission: Submission,
        clock: Callable[[], datetime],
    ) -> None:
        self._jobs = jobs
        self._rows = rows
        self._workflows = workflows
        self._cluster = cluster
        self._submission = submission
        self._clock = clock
        self._submitted: set[str] = set()
        """The workflows that are known to have all that their pods need."""

    def progress(self, job_id: str) -> StepProgress | None:
        """Return None: the rows have the progress of all steps that run."""
        return None

    async def write_progress(self) -> None:
        """Do nothing: see `progress`."""

    async def run(self, job_id: str, attempt: int) -> float:
        """Follow a job until it has ended or its row has changed. Returns 0."""
        failures = 0
        while (job := await self._current(job_id, attempt)) is not None:
            try:
                if await self._pass(job):
                    return 0
                failures = 0
            except (ClusterOutageError, MeshError) as error:
                if isinstance(error, MeshError) and not is_outage(error):
                    raise
                failures += 1
                await self._tell(job, printable(str(error))[:MAX_LOG])
            await asyncio.sleep(backoff(failures) or POLL_SECONDS)
        return 0

    async def clear(self, active: Collection[str], *, ended: str = "") -> None:
        """Do nothing: the cluster has the files of the jobs."""

    async def settle(self) -> None:
        """Stop the workflows of ended jobs, and write down what they left."""
        for job_id in await self._workflows.unsettled():
            job = await self._jobs.find(job_id)
            if job is None or job.active:
                continue
            try:
                await self._settle(job, stop=self._is_left(job))
            except ClusterOutageError as error:
                log.warning("a workflow cannot be looked after", workflow=job.row.workflow, error=str(error))
                return

    async def _current(self, job_id: str, attempt: int) -> Job | None:
        job = await until_written(lambda: self._jobs.find(job_id), "read a job")
        return job if job is not None and job.active and job.row.attempt == attempt else None

    async def _pass(self, job: Job) -> bool:
        """Bring the rows of a job up to date with the cluster. Return whether the job has ended."""
        if await self._end(job):
            return True
        name = workflow_name(job.row.job_id, job.row.attempt)
        if job.row.workflow != name:
            if job.row.workflow and not await self._settle(job, stop=True):
                return False
            await self._workflows.name(job, name)
        workflow = await self._workflow(job, name)
        current: Job | None = job
        while current and workflow and (change := next_change(current.steps, workflow)):
            await to_completion(self._write(current, change))
            current = await self._current(job.row.job_id, job.row.attempt)
        return current is not None and await self._end(current)

    async def _end(self, job: Job) -> bool:
        """End a job that has no step left. Return whether it has none."""
        state = next_of(job.steps)
        if not isinstance(state, JobState):
            return False
        await self._rows.end(job, state)
        log.info("job ended", job_id=job.row.job_id, state=state)
        return True

    async def _workflow(self, job: Job, name: str) -> dict[str, Any] | None:
        """Return the workflow of a job, which is submitted if there is none; None if the job's rows were changed instead."""
        found = await self._cluster.workflow(name)
        begun = any(step.state != StepState.WAITING for step in unpublished(job.steps))
        if found is not None and (begun or name in self._submitted or has_begun(found)):
            return found
        if found is None and begun:
            log.warning("the workflow of a job is gone: it starts again from its source", job_id=job.row.job_id)
            await self._rows.restart(job)
            return None
        try:
            submitted = await self._submission.submit(job, name, found)
        except (ClusterRefusedError, MeshError) as error:
            if isinstance(error, MeshError) and is_outage(error):
                raise
            reason = name_of(error.reason) if isinstance(error, MeshError) else ""
            await self._fail(job, Outcome(REFUSED, reason=reason, message=str(error)))
            return None
        self._submitted.add(name)
        return submitted

    async def _fail(self, job: Job, outcome: Outcome) -> None:
        """Fail the first step: the job cannot begin."""
        step = job.steps[0]
        if await self._rows.begin(job, step):
            await self._rows.fail(job, step, outcome)

    async def _write(self, job: Job, change: Change[Any]) -> None:
        """Write what the cluster says of one step."""
        step, state = change.step, change.state
        outcome, progress = state.outcome, StepProgress(state.done, state.total)
        key = job.key_of(step)
        if state.started and step.state == StepState.WAITING and not await self._rows.begin(job, step, object_key=key):
            return
        if outcome is None:
            await self._rows.report(job, step, progress, tries=state.tries, log=state.words)
        elif outcome.code == DONE:
            await self._rows.succeed(job, step, outcome, progress)
        else:
            log.warning("step failed", job_id=job.row.job_id, step=step.kind, type=step.type, error=outcome.words())
            await self._rows.fail(job, step, outcome)

    async def _tell(self, job: Job, words: str) -> None:
        """Show why a job does not go on, in the log of its next step."""
        step = next_of(job.steps)
        if isinstance(step, JobState) or step.log == words:
            return
        log.warning("a job waits", job_id=job.row.job_id, error=words)
        progress = StepProgress(step.done, step.total)
        await until_written(
            lambda: self._rows.report(job, step, progress, tries=step.tries, log=words), "write why a job waits"
        )

    async def _settle(self, job: Job, *, stop: bool) -> bool:
        """Return whether the workflow in a job's row has ended; its objects without a record are in the rows then."""
        name = job.row.workflow
        workflow = await self._cluster.workflow(name)
        if workflow is not None and not completed(workflow):
            if stop and (workflow.get("spec") or {}).get("shutdown") != "Terminate":
                await self._cluster.terminate(name)
            return False
        await self._workflows.settle(job, name, _left(job, workflow or {}))
        self._submitted.discard(name)
        return True

    def _is_left(self, job: Job) -> bool:
        """Whether nobody needs what the workflow of an ended job still does. One whose tasks have all ended ends by itself."""
        refused = any(step.error_reason in REASONS for step in job.steps)
        return refused or job.row.state == JobState.CANCELLED or self._clock() - job.row.update_time > GRACE


def _left(job: Job, workflow: dict[str, Any]) -> dict[int, str]:
    """Return the keys of the objects that a workflow may have published without a record, by the position of their step."""
    keys = {}
    for step in job.steps:
        if step.kind != StepKind.PUBLISH or is_published(job.steps, step.type):
            continue
        published = task_state(workflow, step.kind, step.type)
        verified = task_state(workflow, StepKind.VERIFY, step.type)
        if published and published.started and verified and verified.outcome and verified.outcome.result:
            keys[step.position] = variant_key(job.row.job_id, step.type, verified.outcome.result["sha256"])
    return keys
