"""How many engines may start at the same time on one machine if no setting says it."""

from __future__ import annotations

MOST_STARTS = 16
"""The default limit is never above this."""


def default_limit(cores: int) -> int:
    """Engines that may start at the same time on a machine with so many usable cores: one each, loading keeps a core busy."""
    return max(1, min(cores, MOST_STARTS))
