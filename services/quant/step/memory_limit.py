"""The limit of the memory of a step, by which a step that needs too much is refused in words before the system kills an engine.

The limit is that of data (RLIMIT_DATA): private memory that is not mapped from a file. The limit of the address space would count the
weights of a model too, which are mapped. Programs that the step starts inherit it. Other systems than Linux do not enforce it.
"""

from __future__ import annotations

import resource

from llamesh.kit.machine_memory import MachineMemory

MIN_LIMIT = 1 << 29
"""Minimum limit in bytes: Python and the libraries of a step need a part of it."""


def limit_of(memory: MachineMemory) -> int:
    """Return the bytes that a step may allocate: what is available now, at least half of all, because engines give memory back."""
    return max(memory.available_bytes, memory.total_bytes // 2, MIN_LIMIT)


def limit_memory(limit: int) -> None:
    """Limit the memory of this process and of those that it starts."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
