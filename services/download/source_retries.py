"""Retries of one attempt of a transfer whose source is busy or was interrupted.

Invariant: the number of tries and the length of each wait are bounded, even if the source requests more.
"""

from __future__ import annotations

from collections.abc import Callable

MAX_TRIES = 6
"""Maximum number of tries. Each starts at the first byte."""
FIRST_SECONDS = 2.0
"""Wait after the first failed try; doubled after each further one."""
MAX_SECONDS = 60.0
"""Longest wait that the source did not request."""
MAX_RETRY_AFTER = 600.0
"""The transfer fails if the source requests a longer wait."""


class SourceRetries:
    """The failed tries of one attempt; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.failed = 0
        self._not_before = 0.0

    def next_wait(self, retry_after: float | None) -> float | None:
        """Count a failed try and return the seconds before the next, at least as many as the source requests; None if there is no next."""
        self.failed += 1
        if self.failed >= MAX_TRIES or (retry_after or 0) > MAX_RETRY_AFTER:
            return None
        wait: float = max(min(FIRST_SECONDS * 2.0 ** (self.failed - 1), MAX_SECONDS), retry_after or 0.0)
        self._not_before = self._clock() + wait
        return wait

    def seconds_left(self) -> float:
        """Return the seconds that the transfer must still wait."""
        return max(self._not_before - self._clock(), 0.0)
