"""Decides what a workflow's state changes in the rows of its job. No I/O.

Invariant: a step that has ended in the rows is not changed any more, and steps end in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from services.quant.argo.tasks import TaskState, completed, task_state, words_of
from services.quant.plan import Step, next_of
from services.quant.states import JobState, StepState
from services.quant.step_process import CRASHED, Outcome


class ReportedStep(Step, Protocol):
    """The fields of a step that a workflow changes."""

    done: int
    total: int
    tries: int
    log: str


S = TypeVar("S", bound=ReportedStep)


@dataclass(frozen=True, slots=True)
class Change(Generic[S]):
    """One step, and what the cluster says of it."""

    step: S
    state: TaskState


def next_change(steps: Sequence[S], workflow: Mapping[str, Any]) -> Change[S] | None:
    """Return the first step whose row is behind the cluster; None if all rows are as the cluster says."""
    for step in steps:
        if step.state not in (StepState.WAITING, StepState.RUNNING):
            continue
        state = task_state(workflow, step.kind, step.type)
        if state is not None and _differs(step, state):
            return Change(step, state)
    if not completed(workflow):
        return None
    # Nothing runs any more, so a step without an end will have none: the workflow was stopped, or was too long.
    left = next_of(steps)
    if isinstance(left, JobState):
        return None
    return Change(left, TaskState(started=True, outcome=Outcome(CRASHED, message=words_of(workflow))))


def _differs(step: ReportedStep, state: TaskState) -> bool:
    if state.outcome is not None or (state.started and step.state == StepState.WAITING):
        return True
    told = (state.done, state.total, state.tries, state.words)
    return (state.started or bool(state.words)) and told != (step.done, step.total, step.tries, step.log)
