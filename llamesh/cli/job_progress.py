"""What a Quant job does now: its current step and progress in words, and the lines that a waiting command prints of them.

Invariant: output that is no terminal, such as a log, gets one line for each step, not one for each percent.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llamesh.cli.output import text, word
from llamesh.cli.printing import note

if TYPE_CHECKING:
    from llamesh.v1.quant_pb2 import QuantJob, QuantStep


def state_of(step: QuantStep) -> str:
    """Return the state of a step in one word, such as RUNNING."""
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantStepState, step.state, "QUANT_STEP_STATE_")


def kind_of(step: QuantStep) -> str:
    """Return the kind of a step in one word, such as quantize."""
    from llamesh.v1 import quant_pb2

    return word(quant_pb2.QuantStepKind, step.kind, "QUANT_STEP_KIND_").lower()


def current_step(job: QuantJob) -> QuantStep | None:
    """Return the step that runs; None if none does."""
    return next((step for step in job.steps if state_of(step) == "RUNNING"), None)


def now(job: QuantJob) -> str:
    """Describe the current step of a job and its progress; empty if no step runs."""
    step = current_step(job)
    if step is None:
        return ""
    done = f" {100 * step.done // step.total}%" if step.total else ""
    return f"{kind_of(step)} {step.type}".strip() + done


class JobProgress:
    """Prints what a job does on standard error: in a terminal its progress, else each step once."""

    def __init__(self) -> None:
        self._said = ("", "")
        """Kind and type of the step that was printed last."""

    def __call__(self, job: QuantJob) -> None:
        """Look at a job as it is now."""
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text(now(job))}\x1b[K")
            sys.stderr.flush()
            return
        step = current_step(job)
        if step is not None and (kind_of(step), step.type) != self._said:
            note(f"{job.job_id}  {now(job)}")
            self._said = kind_of(step), step.type
