"""Waits until an engine is ready, and until it is idle.

Invariant: neither wait assumes a duration. /health decides ready, and `llamesh.kit.occupancy` decides idle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from engine.endpoint import Endpoint, Health

_POLL_SECONDS = 0.02
_MAX_POLL_SECONDS = 0.5
_GROWTH = 1.2
"""Each pause is longer than the one before by this factor: the wait is at most a fifth longer than the load, and a long load costs two
requests a second."""


async def until_ready(endpoint: Endpoint, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
    """Return when the model answers. Has no time limit: the caller also watches the process."""
    pause = _POLL_SECONDS
    while await endpoint.health() is not Health.READY:
        await sleep(pause)
        pause = min(pause * _GROWTH, _MAX_POLL_SECONDS)


async def until_idle(endpoint: Endpoint, known_as: Endpoint, pid: int, grace_seconds: float) -> bool:
    """Wait until llama.cpp, process `pid`, has answered its running requests. Return False if the grace period ends first.

    `endpoint` is the address to probe; `known_as` is the address to which clients connected, as the kernel's table lists it.
    """
    try:
        async with asyncio.timeout(grace_seconds):
            while await endpoint.busy(lambda: known_as.clients(pid)):  # noqa: ASYNC110  # as above
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        return False
    return True
