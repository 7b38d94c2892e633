"""What all watches for people have in common: the heartbeat, and the number of watches that one user may have open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from llamesh.kit.errors import MeshError, Reason

HEARTBEAT = 10.0
"""Seconds without a message after which a heartbeat is sent."""
MAX_WATCHES = 16
"""Maximum number of open watches of one user."""


class WatchLimit:
    """Counts the open watches of one process by user."""

    def __init__(self, limit: int = MAX_WATCHES) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextmanager
    def counted(self, subject: str, uid: str = "") -> Iterator[None]:
        """Count a watch while it is open. Watches are counted by `uid`, or by `subject` without one. Raises TOO_MANY_WATCHES."""
        key = uid or subject
        if self._open[key] >= self._limit:
            raise MeshError(
                Reason.ERROR_REASON_TOO_MANY_WATCHES,
                f"{subject} has {self._limit} watches open already",
                {"limit": self._limit},
            )
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]
