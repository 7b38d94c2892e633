"""Number of engines that may start at the same time on one machine if no setting limits them."""

from __future__ import annotations

MAX_STARTS = 16
"""Upper bound of the default limit."""


def default_limit(cores: int) -> int:
    """Return one start for each usable core, because loading a model keeps a core busy."""
    return max(1, min(cores, MAX_STARTS))
