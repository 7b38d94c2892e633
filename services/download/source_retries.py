"""How often one attempt of a transfer asks a source again that says it is busy, or breaks off.

Invariant: the number of tries and the length of each wait are bounded, whatever the source says.
"""

from __future__ import annotations

from collections.abc import Callable

MOST_TRIES = 6
"""SourceRetries in all. Each begins with the first byte."""
FIRST_SECONDS = 2.0
"""Wait after the first try; doubled after each further one."""
LONGEST_SECONDS = 60.0
"""Longest wait that is not the source's own wish."""
LONGEST_RETRY_AFTER = 600.0
"""A source that asks for a longer wait is given up."""


class SourceRetries:
    """The failed tries of one attempt; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.failed = 0
        self._not_before = 0.0

    def next_wait(self, retry_after: float | None) -> float | None:
        """A try failed: seconds to wait before the next, at least those that the source asks for. None: there is no next."""
        self.failed += 1
        if self.failed >= MOST_TRIES or (retry_after or 0) > LONGEST_RETRY_AFTER:
            return None
        wait: float = max(min(FIRST_SECONDS * 2.0 ** (self.failed - 1), LONGEST_SECONDS), retry_after or 0.0)
        self._not_before = self._clock() + wait
        return wait

    def seconds_left(self) -> float:
        """How long the transfer is still to wait."""
        return max(self._not_before - self._clock(), 0.0)
