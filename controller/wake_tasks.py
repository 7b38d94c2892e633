"""Wakes servers for held requests. A failed wake is retried with exponential backoff while a request is held for the server.

Invariant: one task at a time wakes a server, however many requests are held for it, and no client that disconnects cancels it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from controller.demand import Demand
from llamesh.background import backoff
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import report_failure


class WakeTasks:
    """The wakes that are running. `wake(server_uuid)` wakes a server; `demand` tells whether a request is held for it."""

    def __init__(
        self,
        wake: Callable[[str], Awaitable[None]],
        demand: Demand,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._wake = wake
        self._demand = demand
        self._sleep = sleep
        self._running: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, str] = {}

    def start(self, server_uuid: str) -> None:
        """Start the wake of a server, unless one is running."""
        if server_uuid not in self._running:
            self._running[server_uuid] = asyncio.create_task(self._wake_repeatedly(server_uuid))

    def failure(self, server_uuid: str) -> str:
        """Return why the last wake of a server failed, while it is retried; else an empty string."""
        return self._failures.get(server_uuid, "")

    async def close(self) -> None:
        """Cancel all wakes."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wake_repeatedly(self, server_uuid: str) -> None:
        """Wake a server repeatedly until a wake succeeds or no request is held for it."""
        failures = 0
        try:
            while True:
                try:
                    await self._wake(server_uuid)
                    return
                except Exception as error:
                    if isinstance(error, MeshError) and error.reason == Reason.ERROR_REASON_SERVER_NOT_FOUND:
                        # The server was just removed; the status cache will report it.
                        return
                    failures += 1
                    self._failures[server_uuid] = _words(error)
                    report_failure(f"wake server {server_uuid}", error)
                await self._sleep(backoff(failures))
                if not self._demand.waits_for(server_uuid):
                    return
        finally:
            del self._running[server_uuid]
            self._failures.pop(server_uuid, None)


def _words(error: Exception) -> str:
    return error.message if isinstance(error, MeshError) else f"{type(error).__name__}: {error}"
