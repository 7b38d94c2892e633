"""The pace at which a fetch writes its bytes, which decides whether its reservation of room holds others (`room`). No I/O."""

from __future__ import annotations

from collections.abc import Callable

MAX_HOLD_SECONDS = 24 * 3600.0
"""Maximum number of seconds that what is left of a fetch may take at its pace, so that its reservation holds others."""
WINDOW_SECONDS = 600.0
"""Seconds after which the pace is known. It is that of the last one to two windows, so a source that ceases to send is noticed."""


class Pace:
    """The bytes of the present window and of the one before. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._bytes = 0
        self._last_bytes = 0
        self._last_seconds = 0.0

    def add(self, length: int) -> None:
        """Count written bytes."""
        self._turn()
        self._bytes += length

    def ends_in_time(self, left: int) -> bool:
        """Return whether `left` bytes can be written within MAX_HOLD_SECONDS; True while the pace is not known."""
        self._turn()
        if not self._last_seconds:
            return True
        seconds = self._last_seconds + self._clock() - self._since
        return left * seconds <= (self._last_bytes + self._bytes) * MAX_HOLD_SECONDS

    def _turn(self) -> None:
        """Begin a new window if the present one has ended."""
        seconds = self._clock() - self._since
        if seconds >= WINDOW_SECONDS:
            self._last_bytes, self._last_seconds = self._bytes, seconds
            self._since, self._bytes = self._clock(), 0


def yielding(reserved: dict[str, int], slow: set[str], missing: int) -> list[str]:
    """Return the slow fetches, by model, whose reservations together have the missing bytes: as few as possible; none if all have less."""
    chosen: list[str] = []
    for model_uuid in sorted(slow, key=lambda name: (-reserved[name], name)):
        if missing <= 0:
            break
        chosen.append(model_uuid)
        missing -= reserved[model_uuid]
    return chosen if missing <= 0 else []
