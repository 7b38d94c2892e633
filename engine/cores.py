"""How many processor cores an engine may count on.

llama.cpp takes every physical core it sees. Its threads spin while they wait for each other, so where a core is shared, with
a second engine or with a container's limit, all of them wait for the slowest: measured on 2 cores with one of them busy, two
threads gave 11 tokens/s and one thread 162. Invariant: the default leaves room for the rest of the machine.
"""

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


def default_threads() -> int:
    """Threads of one engine: half of the cores that this process may use, which on most processors is the physical ones."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit = _CGROUP_LIMIT.read_text()
    except OSError:
        limit = ""
    return max(1, usable(affinity, limit) // 2)
