"""Retries of one attempt of a transfer whose object store fails, and the time for which the store has delayed it so far.

Invariant: only the time counts in which the store failed: from the last byte that it stored to the failure, and the backoff before the next
try. Time in which bytes arrive, or in which the transfer waits for a free worker, does not count. A try that stores more bytes than any
try before resets the count. A store that always fails at the same byte ends the transfer at last, because the backoffs count.
"""

from __future__ import annotations

from collections.abc import Callable

from llamesh.background import backoff


class StoreRetries:
    """The waits of one attempt. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._stalled_since: float | None = None
        self._waited = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._done = 0
        self._furthest = 0

    def begin(self) -> None:
        """Note that a try begins to store bytes."""
        self._done = 0
        self._stalled_since = self._clock()

    def add(self, length: int) -> None:
        """Note that the store took `length` bytes."""
        self._done += length
        self._stalled_since = self._clock()

    def staged(self) -> None:
        """Note that the store has all bytes. The time from now on is spent on other services, for instance on the database."""
        self._stalled_since = None

    def failed(self) -> float:
        """Note that the store failed, and start a backoff. Return the seconds that count so far."""
        if self._done > self._furthest:
            self._furthest, self._waited, self._failures = self._done, 0.0, 0
        self._count()
        self._failures += 1
        self._stalled_since = self._clock()
        self._not_before = self._stalled_since + backoff(self._failures)
        return self._waited

    def seconds_left(self) -> float:
        """Return the seconds that the transfer must still wait. Call it only while the store works: a result of 0 ends the wait."""
        left = self._not_before - self._clock()
        if left <= 0:
            self._count()
        return max(left, 0.0)

    def _count(self) -> None:
        if self._stalled_since is not None:
            self._waited += self._clock() - self._stalled_since
            self._stalled_since = None
