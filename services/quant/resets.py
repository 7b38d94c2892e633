"""Resets the steps of a job that is to run again. No I/O: the rows are written with the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from services.quant.plan import unpublished
from services.quant.states import StepKind, StepState
from services.quant.submitters import REASONS
from services.quant.tables import QuantStepRow

_USE_THE_SOURCE = (StepKind.CONVERT, StepKind.IMATRIX, StepKind.QUANTIZE)
"""The steps that fail if the source is damaged."""


def start_again(steps: Sequence[QuantStepRow]) -> None:
    """Reset the steps of the source and of all types that are not published."""
    for step in unpublished(steps):
        _reset(step)


def go_on(steps: Sequence[QuantStepRow]) -> None:
    """Reset the steps that did not succeed, and those whose result may be the reason.

    A variant is made again unless only the bucket or the rights of a user were the reason. The source is brought again if it could not be
    used.
    """
    again = {(step.kind, step.type) for step in steps if step.state != StepState.SUCCEEDED}
    for step in steps:
        if step.state != StepState.FAILED or step.error_reason in REASONS:
            continue
        if step.type and not (step.kind == StepKind.PUBLISH and step.error_reason == "STORE_UNAVAILABLE"):
            again |= {(kind, step.type) for kind in (StepKind.QUANTIZE, StepKind.VERIFY, StepKind.PUBLISH)}
        if step.kind in _USE_THE_SOURCE:
            again |= {(StepKind.FETCH, ""), (StepKind.CONVERT, "")}
    for step in steps:
        if (step.kind, step.type) in again:
            _reset(step)


def _reset(step: QuantStepRow) -> None:
    step.state = StepState.WAITING
    step.done = step.total = step.tries = 0
    step.error_reason = step.error_message = step.log = ""
    step.result = {}
    step.start_time = step.end_time = None
