"""Writes the status of every server into its object, and an Event for each change of its Ready condition.

It follows the cache of statuses, which merges changes: a slow API server gets the latest status, not each step. Invariant: a status that
could not be written is written later, and keeps no other from being written.
"""

from __future__ import annotations

from collections.abc import Callable

from controller.kubernetes import modelserve, workload
from controller.kubernetes.declared_objects import DeclaredObjects
from controller.kubernetes.events import Events
from controller.status_cache import StatusCache
from controller.work_queue import WorkQueue
from llamesh.background import BackgroundTask, Report
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object


class StatusWriter:
    """Writes while this controller leads."""

    def __init__(
        self,
        api: KubernetesApi,
        store: DeclaredObjects,
        statuses: StatusCache,
        events: Events,
        leads: Callable[[], bool],
        report: Report,
    ) -> None:
        self._api = api
        self._store = store
        self._statuses = statuses
        self._events = events
        self._leads = leads
        self._written: dict[str, Object] = {}
        self._queue = WorkQueue(self._write, workers=8)
        self._task = BackgroundTask("follow the statuses of ModelServe objects", self._follow, report)

    def start(self) -> None:
        """Start to write."""
        self._queue.start()
        self._task.start()

    async def close(self) -> None:
        """Stop writing."""
        await self._task.close()
        await self._queue.close()

    def write_all(self) -> None:
        """Write every status: this controller has become the leader, and another one may have written meanwhile."""
        self._written.clear()
        for server in self._statuses.all():
            self._queue.add(server.server_uuid)

    async def _follow(self) -> None:
        async for change in self._statuses.watch():
            if change.HasField("server"):
                self._queue.add(change.server.server_uuid)
            elif change.HasField("removed"):
                self._written.pop(change.removed.server_uuid, None)
                self._events.forget(change.removed.server_uuid)

    async def _write(self, server_uuid: str) -> None:
        item, server = self._store.object(server_uuid), self._statuses.get(server_uuid)
        if item is None or server is None or not self._leads():
            return
        status = modelserve.status(server, workload.label_selector(workload.selector(server_uuid)))
        if self._written.get(server_uuid) == status:
            return
        metadata = item["metadata"]
        place = modelserve.path(metadata["namespace"], metadata["name"], "status")
        try:
            found = await self._api.apply(place, modelserve.status_patch(item, status))
        except ClusterError as error:
            if error.status == 404 or error.is_conflict:
                return  # It has gone.
            raise
        self._written[server_uuid] = status
        self._store.take(found)
        await self._events.note(item, server)
