"""Counts the clients that are connected to an engine's llama.cpp, according to the kernel's table of sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

from controller.runtimes.process_stats import llama_stats
from llamesh.kit.occupancy import ConnectionTable
from llamesh.processes import ProcessId

_CLOSING_SECONDS = 0.005
"""Seconds for which the table may hold a connection of this process after it was closed."""
_MAX_CLOSING_TRIES = 3
"""Maximum number of looks at the table, _CLOSING_SECONDS apart."""


async def connected_clients(table: ConnectionTable, socket: Path, engine: ProcessId) -> int | None:
    """Return the number of connected clients; None if the system does not report it. The caller must have no open connection itself."""
    llama = llama_stats(engine)
    if llama is None:
        return None
    found = await table.clients(socket, llama.pid)
    for _ in range(_MAX_CLOSING_TRIES):
        if not found:
            break
        await asyncio.sleep(_CLOSING_SECONDS)
        found = await table.clients(socket, llama.pid)
    return found
