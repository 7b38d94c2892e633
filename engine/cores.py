"""How many threads an engine computes with.

llama.cpp takes every physical core it sees. Its threads spin while they wait for each other, so where a core is shared, with
a second engine or with a container's limit, all of them wait for the slowest: measured on 2 cores with one of them busy, two
threads gave 11 tokens/s and one thread 162. Invariant: the default leaves room for the rest of the machine.
"""

from __future__ import annotations

from llamesh.cores import usable_cores


def default_threads() -> int:
    """Threads of one engine: half of the cores that this process may use, which on most processors is the physical ones."""
    return max(1, usable_cores() // 2)
