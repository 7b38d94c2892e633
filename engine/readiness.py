"""From started to ready, and from busy to idle: the two waits in an engine's life.

Invariant: neither wait is a guess about time. Ready is what /health says; idle is what `llamesh.kit.occupancy` says.
"""

from __future__ import annotations

import asyncio

from engine.endpoint import Endpoint, Health

_POLL_SECONDS = 0.02


async def until_ready(endpoint: Endpoint) -> None:
    """Return when the model answers. Waits for ever on an engine that never does: the caller watches its process beside."""
    while await endpoint.health() is not Health.READY:  # noqa: ASYNC110  # another process has no Event to wait on
        await asyncio.sleep(_POLL_SECONDS)


async def until_idle(endpoint: Endpoint, known_as: Endpoint, pid: int, grace_seconds: float) -> bool:
    """Wait for running requests of llama.cpp, process `pid`, to be answered in full. False: the grace was over first.

    `endpoint` is where to ask; `known_as` is the address under which clients came, which the kernel's table goes by.
    """
    try:
        async with asyncio.timeout(grace_seconds):
            while await endpoint.busy(lambda: known_as.clients(pid)):  # noqa: ASYNC110  # as above
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        return False
    return True
