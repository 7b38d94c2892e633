"""The worked example in the docstring of controller/plan.py, step by step."""

from __future__ import annotations

import pytest

from controller.actions import Action, Drain, Start, Stop
from controller.observed import ObservedEngine
from tests.unit.planned import GRACE, OLD, TWO, decide, draining, ready, starting

STEPS: list[tuple[list[ObservedEngine], list[Action], list[str]]] = [
    ([ready("a", 0, OLD), ready("b", 1, OLD)], [Start(0)], ["a", "b"]),
    ([ready("a", 0, OLD), ready("b", 1, OLD), starting("c", 0)], [], ["a", "b"]),
    ([ready("a", 0, OLD), ready("b", 1, OLD), ready("c", 0, published=False)], [], ["a", "c", "b"]),
    ([ready("a", 0, OLD), ready("b", 1, OLD), ready("c", 0)], [Drain("a"), Start(1)], ["c", "b"]),
    (
        [draining("a", 0, OLD, withdrawn=True, busy=True), ready("b", 1, OLD), ready("c", 0), starting("d", 1)],
        [],
        ["c", "b"],
    ),
    (
        [draining("a", 0, OLD, withdrawn=True, busy=False), ready("b", 1, OLD), ready("c", 0), ready("d", 1)],
        [Stop("a", GRACE), Drain("b")],
        ["c", "d"],
    ),
    ([draining("b", 1, OLD, withdrawn=True, busy=False), ready("c", 0), ready("d", 1)], [Stop("b", GRACE)], ["c", "d"]),
    ([ready("c", 0), ready("d", 1)], [], ["c", "d"]),
]


@pytest.mark.parametrize("step", range(1, len(STEPS) + 1))
def test_a_roll_out_of_two_replicas_takes_these_steps(step: int) -> None:
    engines, actions, endpoints = STEPS[step - 1]
    decision = decide(TWO, *engines)
    assert list(decision.actions) == actions
    assert list(decision.endpoints) == endpoints
