"""How far a transfer is, in memory: it changes with every chunk and is written to the database sparsely."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 5.0
"""The rate is that of the last so many seconds."""
_STEP_SECONDS = 0.25


class Progress:
    """Bytes that came, bytes in all (0: not known), and how fast they come. `clock` is monotonic, in seconds."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self.done = 0
        self.total = total
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def add(self, length: int) -> None:
        """Count bytes that came."""
        self.done += length
        now = self._clock()
        if now - self._marks[-1][0] >= _STEP_SECONDS:
            self._marks.append((now, self.done))
        while len(self._marks) > 1 and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    def rate(self) -> int:
        """Bytes a second over the last seconds."""
        since, before = self._marks[0]
        elapsed = self._clock() - since
        return int((self.done - before) / elapsed) if elapsed > 0 else 0
