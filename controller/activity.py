"""Which servers work: for those that are to sleep when idle, their engines are asked twice a second how much they have done.

The engine's own counters are the source: they see every request, also one that is shorter than the pause between two questions, and they
need nobody else to be up. A server that never sleeps is never asked.
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
    """Asks, until closed."""

    def __init__(self, statuses: StatusCache, runtime: Runtime, reconciler: Reconciler) -> None:
        self._statuses = statuses
        self._runtime = runtime
        self._reconciler = reconciler
        self._asking = BackgroundTask(
            "ask engines what they have done", self._ask_all, report_failure, every=POLL_SECONDS, immediately=False
        )

    def start(self) -> None:
        """Begin to ask."""
        self._asking.start()

    async def close(self) -> None:
        """Stop asking."""
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
