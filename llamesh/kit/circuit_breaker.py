"""Whether something is known not to answer. Between two trials callers are refused at once instead of waiting for the same deadline.

Pure: the clock is passed in. Any success ends the outage.
"""

from __future__ import annotations

from collections.abc import Callable

TRIAL_SECONDS = 1.0
"""During an outage one caller in so many seconds is let through to try."""


class CircuitBreaker:
    """One thing that may be away. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.cause: Exception | None = None
        """Why it counts as away; None: it answers, as far as is known."""
        self._clock = clock
        self._next_trial = 0.0

    def allows(self) -> bool:
        """Whether the caller may try now."""
        if self.cause is None:
            return True
        now = self._clock()
        if now < self._next_trial:
            return False
        self._next_trial = now + TRIAL_SECONDS
        return True

    def record_failure(self, cause: Exception) -> None:
        """Note that it did not answer."""
        self.cause = cause
        self._next_trial = self._clock() + TRIAL_SECONDS

    def record_success(self) -> None:
        """Note that it answered."""
        self.cause = None
