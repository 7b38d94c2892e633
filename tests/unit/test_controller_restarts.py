"""A single failure restarts at once, repeated failures back off exponentially, and a steady engine gets a clean history."""

from __future__ import annotations

from controller.restarts import (
    FAILING_AFTER,
    MAX_PAUSE,
    MAX_START_PAUSE,
    STEADY_SECONDS,
    RestartHistory,
    after_exit,
    after_ready,
    after_steady,
    pause,
)
from controller.runtimes import CANNOT_START, EngineExit

FAILED = EngineExit("BadModel", "no such tensor", requested=False)


def test_pauses_grow_to_a_limit() -> None:
    assert [pause(failures) for failures in range(7)] == [0, 0, 1, 2, 4, 8, 16]
    assert pause(9) == pause(10**6) == MAX_PAUSE


def test_failures_in_a_row_are_counted_with_their_reason() -> None:
    history = RestartHistory()
    for number in range(1, FAILING_AFTER + 1):
        assert not history.failing
        history = after_exit(history, FAILED, None, now=100.0)
        assert history == RestartHistory(
            number, number, number, 100.0 + pause(number), "BadModel", "no such tensor", {"BadModel": number}
        )
    assert history.failing


def test_a_machine_that_cannot_start_a_process_is_not_held_against_the_engine() -> None:
    history = after_exit(RestartHistory(), FAILED, None, now=100.0)
    for _ in range(30):
        history = after_exit(
            history, EngineExit(CANNOT_START, "no space left on device", requested=False), None, now=100.0
        )
        assert history.not_before - 100.0 <= MAX_START_PAUSE
    assert history.failing
    assert not after_ready(history).failing
    assert after_exit(history, FAILED, 1.0, now=100.0).not_before == 100.0 + pause(2)


def test_an_end_that_was_asked_for_is_no_failure() -> None:
    assert after_exit(RestartHistory(), EngineExit("EngineExited", "", requested=True), 5.0, 100.0) == RestartHistory()


def test_an_engine_that_answered_for_a_while_starts_afresh() -> None:
    history = RestartHistory(restarts=5, failures=5, engine_failures=5)
    assert after_exit(history, FAILED, STEADY_SECONDS, 100.0).failures == 1
    assert after_exit(history, FAILED, STEADY_SECONDS - 1, 100.0).failures == 6
    assert after_exit(history, FAILED, STEADY_SECONDS, 100.0).restarts == 6
    assert after_steady(history) == RestartHistory(restarts=5)


def test_repeated_causes_are_told_apart_and_outlast_good_times() -> None:
    history = RestartHistory()
    for reason in ("InferenceStuck", "EngineKilled", "InferenceStuck"):
        history = after_exit(
            history, EngineExit(reason, f"because of {reason}", requested=False), STEADY_SECONDS, 100.0
        )
    assert after_steady(history).summary == (
        "started again 3 times (EngineKilled 1, InferenceStuck 2); the last cause: because of InferenceStuck"
    )
    assert RestartHistory().summary == ""
