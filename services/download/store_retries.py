"""How long one attempt of a transfer goes on waiting for an object store that fails.

Invariant: only time counts in which the store was of no use: the rest of a try after the last byte that it took, and the wait until the
transfer may begin again. Bytes that come, or a free place among the transfers that is waited for, cost no patience. A try that brings
more bytes than any before starts the count anew; a store that always fails at the same place is given up, because the backoffs count.
"""

from __future__ import annotations

from collections.abc import Callable

from llamesh.background import backoff


class StoreRetries:
    """What one attempt has waited; `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._useless_since: float | None = None
        self._waited = 0.0
        self._failures = 0
        self._not_before = 0.0
        self._done = 0
        self._furthest = 0

    def begin(self) -> None:
        """A try begins to bring bytes."""
        self._done = 0
        self._useless_since = self._clock()

    def add(self, length: int) -> None:
        """Bytes came."""
        self._done += length
        self._useless_since = self._clock()

    def staged(self) -> None:
        """The store has all bytes. What follows may take long for other reasons, for instance a database that is away."""
        self._useless_since = None

    def set_back(self) -> float:
        """The store failed: the next try is to wait for a backoff. Returns how long the store was of no use so far, in seconds."""
        if self._done > self._furthest:
            self._furthest, self._waited, self._failures = self._done, 0.0, 0
        self._count()
        self._failures += 1
        self._useless_since = self._clock()
        self._not_before = self._useless_since + backoff(self._failures)
        return self._waited

    def seconds_left(self) -> float:
        """How long the transfer is still to wait. To be asked while the store can be used; 0 ends the wait."""
        left = self._not_before - self._clock()
        if left <= 0:
            self._count()
        return max(left, 0.0)

    def _count(self) -> None:
        if self._useless_since is not None:
            self._waited += self._clock() - self._useless_since
            self._useless_since = None
