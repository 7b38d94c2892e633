"""Backoff of restarts: at once, then with growing pauses; reset after a stable run."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE = 0.5
"""Seconds before the second restart in a row; each further pause is twice as long."""
MAX_PAUSE = 30.0
"""Maximum number of seconds between two runs."""
STABLE_SECONDS = 30.0
"""A run of this many seconds is stable: the next restart is the first in a row."""


@dataclass(slots=True)
class Restarts:
    """The restarts of one component."""

    in_a_row: int = 0
    """Restarts since it was last stable."""

    def pause_after(self, lived: float) -> float:
        """Return the seconds to wait before the next start, after a run of this many seconds."""
        if lived >= STABLE_SECONDS:
            self.in_a_row = 0
        self.in_a_row += 1
        if self.in_a_row == 1:
            return 0.0
        return float(min(FIRST_PAUSE * 2 ** (self.in_a_row - 2), MAX_PAUSE))
