"""`llamesh jobs ls, show, watch, cancel, retry, rm`: the jobs of the Quant service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import MAX_REASON, Column, Output, show_list, show_one, text, when
from llamesh.cli.printing import note, note_all
from llamesh.cli.quant_connection import calls_quant, quant_connected
from llamesh.cli.quant_progress import (
    ACTIVE,
    current,
    followed_job,
    state_of,
    step_done,
    step_kind,
    step_name,
    step_state,
    step_took,
)
from llamesh.cli.quant_variants import VARIANT, short_source, use_of
from llamesh.cli.remedies import remedy_for

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.quant_pb2 import QuantJob

app = App(name="jobs", help="Jobs that make quantised variants.")
JobId = Annotated[str, Parameter(help="The id of the job.")]


JOB = (
    Column("JOB", lambda job: job.job_id),
    Column("MODEL", lambda job: job.model_uuid or short_source(job.source)),
    Column("TYPES", lambda job: ", ".join(job.types)),
    Column("STATE", state_of),
    Column("NOW", current, below=True),
    Column("WHY", lambda job: job.error.message, below=True, most=MAX_REASON),
    Column("SOURCE", lambda job: job.source, wide=True),
    Column("STARTED", lambda job: when(job.create_time), wide=True),
    Column("OWNER", lambda job: job.owner, wide=True),
)
STEP = (
    Column("STEP", step_kind),
    Column("TYPE", lambda step: step.type),
    Column("STATE", step_state),
    Column("DONE", step_done),
    Column("TRIES", lambda step: step.tries),
    Column("TOOK", step_took, spare=True),
    Column("STARTED", lambda step: when(step.start_time), spare=True),
    Column("WHY", lambda step: step.error.message, below=True),
)


_FOUND_BY_CHECKS = ("VARIANT_UNSOUND",)
"""Reasons that a check of a step gives: its program has worked, and its log has no cause."""


def waited(mesh: Client, job_id: str, output: Output) -> int:
    """Wait for a job, show what it has published, and say how to use it. CommandError if it has not made all its types."""
    job = followed_job(mesh, job_id)
    made = [model for model in mesh.quant.variants() if model.job_id == job_id]
    if made:
        show_list(made, output, VARIANT)
        note(use_of(made[0]))
    if state_of(job) == "SUCCEEDED":
        return Exit.OK
    failed = [f"{step_name(step)}: {text(step.error.message)}" for step in job.steps if step.error.reason]
    raise CommandError(f"the job {job_id} is {state_of(job)}", parts=failed, hint=_what_to_do(job))


def _what_to_do(job: QuantJob) -> str:
    """Return what to do about a job that has ended without all its types, "" if the message of its error says it."""
    if not job.error.reason:
        return f"`llamesh jobs retry {job.job_id}` tries again"
    return remedy_for(job.error.reason, {"jobId": job.job_id}, job.error.remedy)


@app.default
def show_jobs(*, output: Output = "table") -> None:
    """List the jobs, newest first."""
    list_jobs(output=output)


@app.command(name="ls", alias="list")
def list_jobs(*, output: Output = "table") -> None:
    """List the jobs, newest first."""
    with quant_connected() as mesh:
        show_list(mesh.quant.jobs(), output, JOB)


@app.command
def show(job: JobId, *, output: Output = "table") -> None:
    """Show a job and its steps, and what a failed step wrote last."""
    with quant_connected() as mesh:
        found = mesh.quant.job(job)
    if output not in {"table", "wide"}:
        show_one(found, output, JOB)
        return
    # The error of a job is that of its step, which has its own line.
    of_steps = any(step.error.message for step in found.steps)
    show_one(found, output, [column for column in JOB if not (of_steps and column.title == "WHY")])
    show_list(found.steps, output, STEP)
    for step in found.steps:
        if step.error.reason not in {"", *_FOUND_BY_CHECKS} and step.log:
            note(f"\nthe last lines of {step_name(step)}:")
            note_all(text(line) for line in step.log.splitlines())
    if state_of(found) in {"FAILED", "PARTIAL"} and (hint := _what_to_do(found)):
        note(f"hint: {hint}")


@app.command
def watch(job: JobId, *, output: Output = "table") -> int:
    """Follow a job until it has ended, and show the variants."""
    with quant_connected() as mesh:
        return waited(mesh, job, output)


@app.command
def cancel(job: JobId, *, output: Output = "table") -> None:
    """Stop a job; variants that are published stay."""
    with quant_connected() as mesh:
        ended = state_of(mesh.quant.job(job)) not in ACTIVE
        cancelled = mesh.quant.cancel(job)
    if ended:
        note(f"the job {job} has ended already; nothing was done")
    show_one(cancelled, output, JOB)


@app.command
def retry(job: JobId, *, wait: bool = False, output: Output = "table") -> int:
    """Start a job again that ended without all its types.

    Parameters
    ----------
    wait
        Wait until the job has ended, and show the variants.
    """
    with quant_connected() as mesh:
        before = state_of(mesh.quant.job(job))
        again = mesh.quant.retry(job)
        if before in ACTIVE:
            note(f"the job {job} has not ended; nothing was done")
        elif before == "SUCCEEDED":
            note(f"the job {job} has made all its types already; nothing was done")
        if wait:
            return waited(mesh, job, output)
        show_one(again, output, JOB)
        return Exit.OK


@app.command
def rm(job: JobId, /, *jobs: JobId) -> int:
    """Remove records of jobs that have ended; variants that they published stay."""
    from llamesh.cli.several import for_each

    with connected() as mesh:

        def remove(name: str) -> None:
            with calls_quant(mesh):
                note(f"removed {mesh.quant.delete(name).job_id}")

        return for_each([job, *jobs], remove)
