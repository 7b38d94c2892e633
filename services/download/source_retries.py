"""Retries of one attempt of a transfer whose source is busy or broke off.

Invariant: the number of tries and the length of each wait are bounded, whatever the source says.
"""

from __future__ import annotations

from collections.abc import Callable

MOST_TRIES = 6
"""Tries in all. Each starts at the first byte."""
FIRST_SECONDS = 2.0
"""Wait after the first try; doubled after each further one."""
LONGEST_SECONDS = 60.0
"""Longest wait that the source did not ask for."""
LONGEST_RETRY_AFTER = 600.0
"""The transfer fails if the source asks for a longer wait."""


class SourceRetries:
    """The failed tries of one attempt; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.failed = 0
        self._not_before = 0.0

    def next_wait(self, retry_after: float | None) -> float | None:
        """Count a failed try. Returns the seconds before the next, at least those that the source asks for; None if there is no next."""
        self.failed += 1
        if self.failed >= MOST_TRIES or (retry_after or 0) > LONGEST_RETRY_AFTER:
            return None
        wait: float = max(min(FIRST_SECONDS * 2.0 ** (self.failed - 1), LONGEST_SECONDS), retry_after or 0.0)
        self._not_before = self._clock() + wait
        return wait

    def seconds_left(self) -> float:
        """How long the transfer must still wait."""
        return max(self._not_before - self._clock(), 0.0)
