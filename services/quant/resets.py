"""Resets the steps of a job that is to run again. No I/O: the rows are written with the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence

from services.quant.plan import unpublished
from services.quant.states import StepKind, StepState
from services.quant.submitters import REASONS
from services.quant.tables import QuantStepRow

_USE_THE_SOURCE = (StepKind.CONVERT, StepKind.IMATRIX, StepKind.QUANTIZE)
"""The steps that fail if the source is damaged."""
_DAMAGED_SOURCE = "MODEL_INVALID"
"""The reason of a step that takes a given matrix, if its failure has its reason in the source and not in the matrix."""


def start_again(steps: Sequence[QuantStepRow]) -> None:
    """Reset the steps of the source and of all types that are not published."""
    for step in unpublished(steps):
        _reset(step)


def go_on(steps: Sequence[QuantStepRow], *, given_matrix: bool) -> None:
    """Reset the steps that `done_again` names."""
    again = done_again(steps, given_matrix=given_matrix)
    for step in steps:
        if (step.kind, step.type) in again:
            _reset(step)


def done_again(steps: Sequence[QuantStepRow], *, given_matrix: bool) -> set[tuple[str, str]]:
    """Return the kinds and types of the steps that a retry does again: those that did not succeed, and those that may be the reason.

    A variant is made again unless only the bucket or the rights of a user were the reason. The source is brought again if it could not be
    used. A matrix that was given is read again by itself, because it is the reason unless the source is damaged.
    """
    again = {(step.kind, step.type) for step in steps if step.state != StepState.SUCCEEDED}
    for step in steps:
        if step.state != StepState.FAILED or step.error_reason in REASONS:
            continue
        if step.type and not (step.kind == StepKind.PUBLISH and step.error_reason == "STORE_UNAVAILABLE"):
            again |= {(kind, step.type) for kind in (StepKind.QUANTIZE, StepKind.VERIFY, StepKind.PUBLISH)}
        of_the_matrix = given_matrix and step.kind == StepKind.IMATRIX and step.error_reason != _DAMAGED_SOURCE
        if step.kind in _USE_THE_SOURCE and not of_the_matrix:
            again |= {(StepKind.FETCH, ""), (StepKind.CONVERT, "")}
    return again


def _reset(step: QuantStepRow) -> None:
    step.state = StepState.WAITING
    step.done = step.total = step.tries = 0
    step.error_reason = step.error_message = step.log = ""
    step.result = {}
    step.start_time = step.end_time = None
