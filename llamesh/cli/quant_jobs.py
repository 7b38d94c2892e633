"""`llamesh jobs ls, show, cancel, retry, rm`: the jobs of the Quant service."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import Column, Output, show_list, show_one, text, when, word
from llamesh.cli.printing import note
from llamesh.cli.quant_connection import calls_quant, quant_connected
from llamesh.cli.quant_variants import VARIANT

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.quant_pb2 import QuantJob, QuantStep

app = App(name="jobs", help="Jobs that make quantised variants.")
JobId = Annotated[str, Parameter(help="The id of the job.")]


def _state(job: QuantJob) -> str:
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantJobState, job.state, "QUANT_JOB_STATE_")


def _step_state(step: QuantStep) -> str:
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantStepState, step.state, "QUANT_STEP_STATE_")


def _kind(step: QuantStep) -> str:
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantStepKind, step.kind, "QUANT_STEP_KIND_").lower()


def _now(job: QuantJob) -> str:
    """Describe the current step of a job and its progress."""
    step = next((step for step in job.steps if _step_state(step) == "RUNNING"), None)
    if step is None:
        return ""
    done = f" {100 * step.done // step.total}%" if step.total else ""
    return f"{_kind(step)} {step.type}".strip() + done


JOB = (
    Column("JOB", lambda job: job.job_id),
    Column("MODEL", lambda job: job.model_uuid or job.source),
    Column("TYPES", lambda job: ", ".join(job.types)),
    Column("STATE", _state),
    Column("NOW", _now),
    Column("WHY", lambda job: job.error.message, below=True),
    Column("STARTED", lambda job: when(job.create_time), wide=True),
    Column("OWNER", lambda job: job.owner, wide=True),
)
STEP = (
    Column("STEP", _kind),
    Column("TYPE", lambda step: step.type),
    Column("STATE", _step_state),
    Column("TRIES", lambda step: step.tries),
    Column("WHY", lambda step: step.error.message, below=True),
)


def waited(mesh: Client, job_id: str, output: Output) -> int:
    """Wait for a job and show what it has published. Ctrl-C ends the waiting only, and says how to go on."""
    try:
        job = mesh.quant.wait(job_id, _Said())
    except KeyboardInterrupt:
        note(f"the job {job_id} goes on: `llamesh jobs` shows it, `llamesh jobs cancel {job_id}` ends it")
        raise
    made = [model for model in mesh.quant.variants() if model.job_id == job_id]
    if made:
        show_list(made, output, VARIANT)
    if _state(job) == "SUCCEEDED":
        return Exit.OK
    failed = [f"{_kind(step)} {step.type}: {text(step.error.message)}" for step in job.steps if step.error.reason]
    raise CommandError(
        f"the job {job_id} is {_state(job)}", parts=failed, hint=job.error.remedy or f"llamesh jobs retry {job_id}"
    )


class _Said:
    """Prints each step of a job once, on standard error."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, job: QuantJob) -> None:
        """Look at a job as it is now."""
        now = _now(job)
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text(now)}\x1b[K")
            sys.stderr.flush()
        elif now and now.split(" ")[:2] != self._last.split(" ")[:2]:
            note(f"{job.job_id}  {now}")
        self._last = now


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
        if output != "table":
            show_one(found, output, JOB)
            return
        show_one(found, output, JOB)
        show_list(found.steps, output, STEP)
        for step in found.steps:
            if step.error.reason and step.log:
                note(text(step.log))


@app.command
def cancel(job: JobId, *, output: Output = "table") -> None:
    """Stop a job; variants that are published stay."""
    with quant_connected() as mesh:
        show_one(mesh.quant.cancel(job), output, JOB)


@app.command
def retry(job: JobId, *, wait: bool = False, output: Output = "table") -> int:
    """Start a job again that ended without all its types.

    Parameters
    ----------
    wait
        Wait until the job has ended, and show the variants.
    """
    with quant_connected() as mesh:
        again = mesh.quant.retry(job)
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
