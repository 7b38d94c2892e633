"""The progress of a job of the Quant service: what its steps are called, how far they are, and a wait that shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamesh.cli.output import size, word
from llamesh.cli.printing import note
from llamesh.cli.progress import ProgressFigures, ProgressLine, duration, share
from llamesh.cli.silence import is_silent

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.quant_pb2 import QuantJob, QuantStep

_OF_BYTES = {"fetch", "publish"}
"""Steps whose units are bytes."""
ACTIVE = frozenset({"QUEUED", "RUNNING"})
"""States of a job that has not ended."""


def state_of(job: QuantJob) -> str:
    """Return the state of a job in a word."""
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantJobState, job.state, "QUANT_JOB_STATE_")


def step_state(step: QuantStep) -> str:
    """Return the state of a step in a word."""
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantStepState, step.state, "QUANT_STEP_STATE_")


def step_kind(step: QuantStep) -> str:
    """Return what a step does in a word."""
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantStepKind, step.kind, "QUANT_STEP_KIND_").lower()


def step_name(step: QuantStep) -> str:
    """Return the name of a step in messages: what it does, and the type if it makes one."""
    return f"{step_kind(step)} {step.type}".strip()


def step_done(step: QuantStep) -> str:
    """Return the figures of a step: units that are done of all; empty if it has none."""
    if not step.total:
        return ""
    if step_kind(step) in _OF_BYTES:
        return f"{size(step.done)} of {size(step.total)}"
    return f"{step.done} of {step.total}"


def step_took(step: QuantStep) -> str:
    """Return how long a step took; empty if it has not ended."""
    if not step.end_time.seconds:
        return ""
    return duration((step.end_time.ToDatetime() - step.start_time.ToDatetime()).total_seconds())


def running_step(job: QuantJob) -> QuantStep | None:
    """Return the first step that runs; None if none does."""
    return next((step for step in job.steps if step_state(step) == "RUNNING"), None)


def current(job: QuantJob) -> str:
    """Describe the current step of a job and its progress."""
    step = running_step(job)
    if step is None:
        return ""
    return step_name(step) + (f" {share(step.done, step.total)}%" if step.total else "")


def followed_job(mesh: Client, job_id: str) -> QuantJob:
    """Wait for the end of a job and show its progress. Ctrl-C ends the waiting only, and says how to go on."""
    shown = ProgressLine(unknown=True)

    def look(job: QuantJob) -> None:
        if job.error.message and state_of(job) in ACTIVE:
            shown.say(f"{job_id}: {job.error.message}")
        if step := running_step(job):
            facts = f"{share(step.done, step.total):3d}%  {step_done(step)}" if step.total else ""
            shown.look(ProgressFigures(f"{job_id}  {step_name(step)}", facts, step.done, step.total))
        elif state_of(job) == "QUEUED":
            shown.look(ProgressFigures(job_id, "waits for its turn", 0, 0))

    try:
        with shown.shows(mesh.silence):
            return mesh.quant.wait(job_id, look)
    except BaseException as error:
        shown.clear()
        if is_silent(mesh.silence, error):
            note(
                f"it is not known whether the job goes on: `llamesh jobs watch {job_id}` follows it if the mesh answers"
            )
        elif isinstance(error, KeyboardInterrupt):
            note(f"the job goes on: `llamesh jobs watch {job_id}` follows it, `llamesh jobs cancel {job_id}` ends it")
        raise
    finally:
        shown.clear()
