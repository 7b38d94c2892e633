"""How many processor cores this process may use, on a machine or in a container."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def usable(affinity: int, limit: str) -> int:
    """Cores usable by a process that may run on `affinity` cores under a cgroup's `cpu.max` ("max 100000", empty: no limit)."""
    quota, _, period = limit.partition(" ")
    if quota.isdecimal() and period.strip().isdecimal():
        return max(1, min(affinity, math.ceil(int(quota) / int(period))))
    return affinity


def usable_cores() -> int:
    """Cores that this process may use now; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit = _CGROUP_LIMIT.read_text()
    except OSError:
        limit = ""
    return usable(affinity, limit)
