"""The login throttle: free failures, then growing pauses with an end, forgotten on success, in bounded memory."""

from __future__ import annotations

import pytest

from llamesh.kit.errors import MeshError, Reason
from services.gateway.throttle import FREE_FAILURES, LONGEST_PAUSE, REMEMBERED_NAMES, Throttle


class Clock:
    """A clock that a test turns."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


def pause(throttle: Throttle, name: str = "ada") -> float:
    """Seconds that a name must wait now."""
    try:
        throttle.check(name)
    except MeshError as error:
        return error.retry_after or 0.0
    return 0.0


def test_pauses_double_up_to_the_longest() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    pauses = []
    for _ in range(14):
        throttle.failed("ada")
        pauses.append(pause(throttle))
        clock.time += pauses[-1]
        assert pause(throttle) == 0
    assert pauses == [0] * (FREE_FAILURES - 1) + [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert max(pauses) == LONGEST_PAUSE


def test_the_wait_is_told_in_whole_seconds_and_never_zero() -> None:
    clock = Clock()
    throttle = Throttle(clock)
    for _ in range(FREE_FAILURES + 1):
        throttle.failed("ada")
    clock.time += 1.9
    with pytest.raises(MeshError) as caught:
        throttle.check("ada")
    assert caught.value.reason == Reason.ERROR_REASON_TOO_MANY_LOGINS
    assert caught.value.metadata == {"retryAfterSeconds": 1}


def test_a_right_password_makes_a_clean_slate_and_names_are_apart() -> None:
    throttle = Throttle(Clock())
    for _ in range(FREE_FAILURES):
        throttle.failed("ada")
    assert pause(throttle, "bob") == 0
    assert pause(throttle) > 0
    throttle.succeeded("ada")
    assert pause(throttle) == 0


def test_strangers_names_take_bounded_memory() -> None:
    throttle = Throttle(Clock())
    for number in range(REMEMBERED_NAMES + 500):
        throttle.failed(f"name{number}")
    assert len(throttle._records) == REMEMBERED_NAMES
