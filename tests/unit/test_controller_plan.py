"""The plan for one server in each observed state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from controller.actions import Action, Decision, Drain, FallAsleep, Forget, Locate, Resume, Start, Stop
from controller.observed import Desired, ObservedEngine
from controller.plan import IDLE_POLL_SECONDS, PATIENCE
from controller.restarts import RestartHistory
from controller.runtimes import Liveness
from controller.starts import NotEnoughMemory, Queued
from tests.unit.planned import (
    ASKED,
    GOING,
    GRACE,
    IDLE,
    NEW,
    NOW,
    OLD,
    ONE,
    TWO,
    decide,
    doubted,
    draining,
    engine,
    ready,
    starting,
    stopping,
)

CASES: dict[str, tuple[Desired, list[ObservedEngine], list[Action], list[str]]] = {
    # from nothing
    "nothing runs: start": (ONE, [], [Start(0)], []),
    "two wanted: start both": (TWO, [], [Start(0), Start(1)], []),
    "one of two is missing: start that one": (TWO, [ready("a")], [Start(1)], ["a"]),
    "one starts: wait": (ONE, [starting("a")], [], []),
    "an engine that ends does not count": (ONE, [stopping("a")], [Start(0)], []),
    # as it should be
    "ready: publish": (ONE, [ready("a", published=False)], [], ["a"]),
    "ready and published: nothing": (ONE, [ready("a")], [], ["a"]),
    "endpoints go by replica": (TWO, [ready("z", 0), ready("b", 1)], [], ["z", "b"]),
    # fewer
    "one too many: drain it": (ONE, [ready("a"), ready("b", 1)], [Drain("b")], ["a"]),
    "one too many that starts: end it": (ONE, [ready("a"), starting("b", 1)], [Stop("b", 0.0)], ["a"]),
    "twice the same replica: keep the one that is ready": (ONE, [starting("a"), ready("b")], [Stop("a", 0.0)], ["b"]),
    "twice the same, both ready: keep the first": (ONE, [ready("a"), ready("b")], [Drain("b")], ["a"]),
    # draining
    "Envoy still knows it: wait": (ONE, [ready("a"), draining("b", 1)], [], ["a"]),
    "Envoy has let go, busy: wait": (ONE, [ready("a"), draining("b", 1, withdrawn=True, busy=True)], [], ["a"]),
    "Envoy has let go, it does not say: wait": (ONE, [ready("a"), draining("b", 1, withdrawn=True)], [], ["a"]),
    "Envoy has let go, idle: end it": (
        ONE,
        [ready("a"), draining("b", 1, withdrawn=True, busy=False)],
        [Stop("b", GRACE)],
        ["a"],
    ),
    "Envoy still knows it, idle: wait all the same": (ONE, [ready("a"), draining("b", 1, busy=False)], [], ["a"]),
    "patience is over: end it": (
        ONE,
        [ready("a"), draining("b", 1, since=NOW - PATIENCE, withdrawn=True, busy=True)],
        [Stop("b", GRACE)],
        ["a"],
    ),
    "wanted again before it ended: take it back": (ONE, [draining("a", withdrawn=True)], [Resume("a")], ["a"]),
    # in doubt
    "suspect: no new requests, nothing is started": (ONE, [doubted("a", Liveness.SUSPECT)], [], []),
    "one of two is suspect: the other has it all": (TWO, [doubted("a", Liveness.SUSPECT), ready("b", 1)], [], ["b"]),
    "it answers again: back at once": (ONE, [ready("a", published=False)], [], ["a"]),
    "being killed: wait for its end": (ONE, [doubted("a", Liveness.STUCK)], [], []),
    "lost: replaced, and let finish what it works on": (
        ONE,
        [doubted("a", Liveness.LOST)],
        [Drain("a"), Start(0)],
        [],
    ),
    "lost and drained, busy: wait": (
        ONE,
        [doubted("a", Liveness.LOST, draining_since=NOW, withdrawn=True, busy=True), starting("b")],
        [],
        [],
    ),
    "lost and drained, idle: end it": (
        ONE,
        [doubted("a", Liveness.LOST, draining_since=NOW, withdrawn=True, busy=False), starting("b")],
        [Stop("a", GRACE)],
        [],
    ),
    "changed, and the new one is suspect: the old one goes on": (
        ONE,
        [ready("a", 0, OLD), doubted("b", Liveness.SUSPECT)],
        [],
        ["a"],
    ),
    "changed, and the old one is suspect: the new one starts beside it": (
        ONE,
        [doubted("a", Liveness.SUSPECT, spec_hash=OLD)],
        [Start(0)],
        [],
    ),
    "twice the same replica: keep the one that answers": (
        ONE,
        [doubted("a", Liveness.SUSPECT), ready("b")],
        [Drain("a")],
        ["b"],
    ),
    # changed parameters
    "changed: start the new one beside the old": (ONE, [ready("a", 0, OLD)], [Start(0)], ["a"]),
    "the new one starts: the old one answers": (ONE, [ready("a", 0, OLD), starting("b")], [], ["a"]),
    "the new one is ready, Envoy does not know it: both": (
        ONE,
        [ready("a", 0, OLD), ready("b", published=False)],
        [],
        ["a", "b"],
    ),
    "Envoy knows the new one: drain the old": (ONE, [ready("a", 0, OLD), ready("b")], [Drain("a")], ["b"]),
    "two: one after the other": (TWO, [ready("a", 0, OLD), ready("b", 1, OLD)], [Start(0)], ["a", "b"]),
    "two: the second waits for the first": (
        TWO,
        [ready("a", 0, OLD), ready("b", 1, OLD), starting("c", 0)],
        [],
        ["a", "b"],
    ),
    "two: the first is replaced, then the second begins": (
        TWO,
        [ready("a", 0, OLD), ready("b", 1, OLD), ready("c", 0)],
        [Drain("a"), Start(1)],
        ["c", "b"],
    ),
    "changed while starting: the old start is given up": (ONE, [starting("a", 0, OLD)], [Stop("a", 0.0), Start(0)], []),
    "changed back while draining: the old one is the new one": (
        ONE,
        [draining("a", 0, NEW), ready("b", 0, OLD)],
        [Resume("a")],
        ["a", "b"],
    ),
    "the old one drains and the new one died: take the old one back": (
        ONE,
        [draining("a", 0, OLD, withdrawn=True)],
        [Resume("a"), Start(0)],
        ["a"],
    ),
    "changed and fewer: the one too many goes": (
        ONE,
        [ready("a", 0, OLD), ready("b", 1, OLD)],
        [Drain("b"), Start(0)],
        ["a"],
    ),
    "changed and more: what is missing starts at once": (
        TWO,
        [ready("a", 0, OLD)],
        [Start(0), Start(1)],
        ["a"],
    ),
    # asleep
    "told to sleep: drain": (ASKED, [ready("a")], [Drain("a")], []),
    "told to sleep, Envoy has let go: end it though busy": (
        ASKED,
        [draining("a", withdrawn=True, busy=True)],
        [Stop("a", GRACE)],
        [],
    ),
    "told to sleep, starting: end it": (ASKED, [starting("a")], [Stop("a", 0.0)], []),
    "idle, a request slipped in: let it finish": (IDLE, [draining("a", withdrawn=True, busy=True)], [], []),
    "idle, nothing runs: end it": (IDLE, [draining("a", withdrawn=True, busy=False)], [Stop("a", GRACE)], []),
    "asleep: nothing": (IDLE, [], [], []),
    # removed
    "removed: drain": (GOING, [ready("a")], [Drain("a")], []),
    "removed, Envoy has let go: end it": (GOING, [draining("a", withdrawn=True)], [Stop("a", GRACE)], []),
    "removed, still ending: wait": (GOING, [stopping("a")], [], []),
    "removed, nothing left: forget": (GOING, [], [Forget()], []),
    "removed and asleep: forget": (replace(IDLE, removing=True), [], [Forget()], []),
}


@pytest.mark.parametrize("case", CASES)
def test_a_situation_leads_to_its_actions(case: str) -> None:
    desired, engines, actions, endpoints = CASES[case]
    decision = decide(desired, *engines)
    assert list(decision.actions) == actions
    assert list(decision.endpoints) == endpoints


def test_without_an_envoy_a_ready_engine_replaces_the_old_one() -> None:
    engines = ready("a", 0, OLD, published=False), ready("b", published=False)
    assert decide(ONE, *engines, envoy_connected=True).actions == ()
    assert decide(ONE, *engines, envoy_connected=False).actions == (Drain("a"),)


def test_an_engine_that_failed_waits_for_its_next_start() -> None:
    restart_histories = {0: RestartHistory(restarts=2, failures=2, not_before=NOW + 3)}
    waiting = decide(TWO, restart_histories=restart_histories)
    assert waiting.actions == (Start(1),)
    assert waiting.requeue_after == 3
    assert decide(TWO, restart_histories=restart_histories, now=NOW + 3).actions == (Start(0), Start(1))


def test_a_replacement_that_keeps_failing_holds_up_the_others() -> None:
    restart_histories = {0: RestartHistory(restarts=3, failures=3, not_before=NOW + 9)}
    decision = decide(TWO, ready("a", 0, OLD), ready("b", 1, OLD), restart_histories=restart_histories)
    assert decision.actions == ()
    assert decision.endpoints == ("a", "b")


def test_a_model_that_is_not_there_is_asked_for_once_and_nothing_is_started() -> None:
    assert decide(TWO, model_available=False).actions == (Locate(),)


def test_a_draining_engine_is_looked_at_often() -> None:
    assert decide(IDLE, draining("a", withdrawn=True, busy=True)).requeue_after == IDLE_POLL_SECONDS


@pytest.mark.parametrize(
    ("engines", "last", "asleep"),
    [
        ([ready("a", busy=False)], NOW - 10, True),
        ([ready("a", busy=None)], NOW - 10, True),
        ([ready("a", busy=True)], NOW - 10, False),
        ([ready("a", busy=False)], NOW - 9, False),
        ([starting("a")], NOW - 10, False),
        ([], NOW - 10, True),
    ],
)
def test_a_server_sleeps_only_when_it_was_idle_for_long_enough(
    engines: list[ObservedEngine], last: float, asleep: bool
) -> None:
    decision = decide(
        replace(ONE, idle_sleep=10), *engines, last_activity=last, restart_histories={0: RestartHistory(not_before=9e9)}
    )
    assert (FallAsleep() in decision.actions) is asleep


FAILED = {0: RestartHistory(restarts=1, failures=1, not_before=NOW)}
NO_MEMORY = NotEnoughMemory(needed_bytes=2, free_bytes=1)


@pytest.mark.parametrize(
    ("desired", "engines", "more", "actions"),
    [
        (ONE, [], {"model_available": False}, (Locate(),)),
        (ONE, [], {}, (Start(0),)),
        (ONE, [], {"restart_histories": FAILED}, (Start(0),)),
        (ONE, [], {"pending_starts": {0: Queued(1)}}, (Start(0),)),
        (ONE, [], {"pending_starts": {0: NO_MEMORY}}, (Start(0),)),
        (TWO, [ready("b", 1, busy=False)], {"restart_histories": FAILED}, (Start(0),)),
        (TWO, [ready("b", 1, busy=False)], {"model_available": False}, (Locate(),)),
        (TWO, [ready("b", 1, busy=False)], {"pending_starts": {0: Queued(1)}}, (Start(0),)),
        (TWO, [ready("b", 1, busy=False)], {"pending_starts": {0: NO_MEMORY}}, (FallAsleep(),)),
    ],
    ids=[
        "its model is located",
        "its first start",
        "a restart is due",
        "its start is queued",
        "its start waits for memory",
        "one idle, the other is due for a restart",
        "one idle, the model of the other is located",
        "one idle, the start of the other is queued",
        "one idle, the start of the other waits for memory: free the memory",
    ],
)
def test_a_server_whose_engine_is_about_to_start_stays_awake(
    desired: Desired, engines: list[ObservedEngine], more: dict[str, Any], actions: tuple[Action, ...]
) -> None:
    assert decide(replace(desired, idle_sleep=10), *engines, last_activity=NOW - 60, **more).actions == actions


def test_a_busy_server_is_looked_at_again_when_it_could_have_been_idle() -> None:
    decision = decide(replace(ONE, idle_sleep=10), ready("a", busy=True), last_activity=NOW - 60)
    assert decision == Decision((), ("a",), requeue_after=10)


def test_an_engine_that_has_just_become_ready_waits_for_the_requests_that_woke_it() -> None:
    fresh = ObservedEngine(replace(engine("a"), ready_since=NOW - 1), published=True)
    decision = decide(replace(ONE, idle_sleep=10), fresh, last_activity=NOW - 60)
    assert decision.actions == ()
    assert decision.requeue_after == 9


def test_a_server_that_never_sleeps_never_does() -> None:
    assert decide(ONE, ready("a", busy=False), last_activity=-1e9).actions == ()
