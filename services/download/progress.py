"""Progress of a transfer, in memory: it changes with every chunk and is written to the database at an interval."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 5.0
"""Seconds over which the rate is measured."""
_STEP_SECONDS = 0.25


class Progress:
    """Bytes received, total bytes (0: unknown) and the rate. `clock` is monotonic, in seconds."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self.done = 0
        self.total = total
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def begin_at(self, done: int) -> None:
        """Note that bytes of an earlier run are there. They do not count in the rate."""
        self.done = done
        self._marks = deque([(self._clock(), done)])

    def add(self, length: int) -> None:
        """Count received bytes."""
        self.done += length
        now = self._clock()
        if now - self._marks[-1][0] >= _STEP_SECONDS:
            self._marks.append((now, self.done))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    def rate(self) -> int:
        """Return the bytes per second over the window."""
        since, before = self._marks[0]
        elapsed = self._clock() - since
        return int((self.done - before) / elapsed) if elapsed > 0 else 0
