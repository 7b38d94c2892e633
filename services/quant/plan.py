"""Decides the next step of a job from its steps alone. No I/O.

The steps of a job are `fetch`, `convert` if its source is a checkpoint, `imatrix` if it uses an importance matrix, and for each type
`quantize`, `verify`, `publish`.
Invariant: a type that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from services.quant.states import JobState, StepKind, StepState

_OF_A_TYPE = (StepKind.QUANTIZE, StepKind.VERIFY, StepKind.PUBLISH)
_OPEN = (StepState.WAITING, StepState.RUNNING)


class Step(Protocol):
    """The fields of a step that the plan uses."""

    kind: str
    type: str
    state: str


S = TypeVar("S", bound=Step)


def steps_of(
    types: Sequence[str], *, checkpoint: bool = False, importance_matrix: bool = False
) -> list[tuple[StepKind, str]]:
    """Return the steps of a job that makes these types, in their order. `checkpoint` says whether its source is one."""
    of_all = [
        StepKind.FETCH,
        *([StepKind.CONVERT] if checkpoint else []),
        *([StepKind.IMATRIX] if importance_matrix else []),
    ]
    return [*((kind, "") for kind in of_all), *((kind, each) for each in types for kind in _OF_A_TYPE)]


def next_of(steps: Sequence[S]) -> S | JobState:
    """Return the step that runs next, or the state in which the job has ended."""
    failed: set[str] = set()
    for step in steps:
        if {"", step.type} & failed:
            continue
        if step.state in _OPEN:
            return step
        if step.state != StepState.SUCCEEDED:
            failed.add(step.type)
    published = [step.state == StepState.SUCCEEDED for step in steps if step.kind == StepKind.PUBLISH]
    if all(published):
        return JobState.SUCCEEDED
    return JobState.PARTIAL if any(published) else JobState.FAILED


def unpublished(steps: Sequence[S]) -> list[S]:
    """Return the steps of the source and of all types that are not published: those that a start from the source does again."""
    return [step for step in steps if not (step.type and is_published(steps, step.type))]


def is_published(steps: Sequence[Step], of_type: str) -> bool:
    """Return whether a type has been published: a retry keeps it."""
    return any(
        step.state == StepState.SUCCEEDED for step in steps if step.kind == StepKind.PUBLISH and step.type == of_type
    )
