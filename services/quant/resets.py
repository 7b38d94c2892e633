"""Resets the steps of a job that is to run again. No I/O: the rows are written with the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from services.quant.plan import is_published
from services.quant.states import StepKind, StepState
from services.quant.tables import QuantStepRow


def start_again(steps: Sequence[QuantStepRow]) -> None:
    """Reset the steps of the source and of all types that are not published."""
    for step in steps:
        if not (step.type and is_published(steps, step.type)):
            _reset(step)


def go_on(steps: Sequence[QuantStepRow]) -> None:
    """Reset the steps that did not succeed. A variant that did not pass its checks is made again."""
    unsound = {step.type for step in steps if step.kind == StepKind.VERIFY and step.state == StepState.FAILED}
    for step in steps:
        if step.state != StepState.SUCCEEDED or (step.kind == StepKind.QUANTIZE and step.type in unsound):
            _reset(step)


def _reset(step: QuantStepRow) -> None:
    step.state = StepState.WAITING
    step.done = step.total = step.tries = 0
    step.error_reason = step.error_message = step.log = ""
    step.result = {}
    step.start_time = step.end_time = None
