"""Polls the work counters of the engines of servers with `idle_sleep`, so that a working server does not fall asleep.

Every POLL_SECONDS a background task requests the counters of all ready engines of these servers in parallel and passes each answer to the
reconciler, which records activity if the counter has grown. The engines' own counters are the source because they also count requests
that are shorter than the polling interval. Only one round runs at a time, so a slow engine never has two polls at once.

Invariant: a server without `idle_sleep` is never polled.
"""

from __future__ import annotations

import asyncio

from controller.reconcile import Reconciler
from controller.runtimes import EnginePhase, Runtime
from controller.status_cache import StatusCache
from llamesh.background import BackgroundTask
from llamesh.kit.logs import report_failure

POLL_SECONDS = 0.5


class ActivityPoller:
    """Polls until closed."""

    def __init__(self, statuses: StatusCache, runtime: Runtime, reconciler: Reconciler) -> None:
        self._statuses = statuses
        self._runtime = runtime
        self._reconciler = reconciler
        self._asking = BackgroundTask(
            "ask engines what they have done", self._ask_all, report_failure, every=POLL_SECONDS, immediately=False
        )

    def start(self) -> None:
        """Start polling."""
        self._asking.start()

    async def close(self) -> None:
        """Stop polling."""
        await self._asking.close()

    async def _ask_all(self) -> None:
        await asyncio.gather(
            *(
                self._ask(server.server_uuid, engine.instance)
                for server in self._statuses.all()
                if server.spec.idle_sleep.ToMilliseconds()
                for engine in self._runtime.engines(server.server_uuid)
                if engine.phase is EnginePhase.READY
            )
        )

    async def _ask(self, server_uuid: str, instance: str) -> None:
        self._reconciler.note_load(server_uuid, instance, await self._runtime.load(instance))
