"""A circuit breaker: while a component is known not to answer, callers fail at once instead of waiting for the same deadline.

After a failure the breaker is open and allows one trial each second. Invariant: any success closes it. The clock is an argument.
"""

from __future__ import annotations

from collections.abc import Callable

TRIAL_SECONDS = 1.0
"""Seconds between two trials while the breaker is open."""


class CircuitBreaker:
    """The breaker of one component. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.cause: Exception | None = None
        """Failure that opened the breaker; None while it is closed."""
        self._clock = clock
        self._next_trial = 0.0

    def allows(self) -> bool:
        """Whether the caller may call the component now."""
        if self.cause is None:
            return True
        now = self._clock()
        if now < self._next_trial:
            return False
        self._next_trial = now + TRIAL_SECONDS
        return True

    def record_failure(self, cause: Exception) -> None:
        """Open the breaker: the component did not answer."""
        self.cause = cause
        self._next_trial = self._clock() + TRIAL_SECONDS

    def record_success(self) -> None:
        """Close the breaker: the component answered."""
        self.cause = None
