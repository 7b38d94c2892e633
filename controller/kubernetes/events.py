"""Writes an Event of the cluster for each change of a server's Ready condition, as `kubectl describe` and `kubectl get events` show them.

Invariant: events are for people. One that cannot be written is dropped: the status says the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from controller.kubernetes.modelserve import GROUP, VERSION
from llamesh.kit.clock import utc_now
from llamesh.kit.kubernetes_api import ClusterError, KubernetesApi, Object
from llamesh.v1.server_pb2 import CONDITION_STATUS_TRUE, Condition, Server

REPORTER = f"{GROUP}/controller"
_MAX_MESSAGE = 1000
_CALM = ("Starting", "Asleep", "Stopping")
"""Reasons for which a server is not ready as expected."""


class Events:
    """The events of all servers."""

    def __init__(
        self,
        api: KubernetesApi,
        instance: str,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """`instance` names this controller."""
        self._api = api
        self._instance = instance
        self._now = now
        self._last: dict[str, tuple[int, str]] = {}

    async def note(self, item: Object, server: Server) -> None:
        """Write an event if the Ready condition has another status or reason than at the last call."""
        ready = next((each for each in server.conditions if each.type == "Ready"), None)
        if ready is None:
            return
        state = (ready.status, ready.reason)
        before = self._last.get(server.server_uuid)
        self._last[server.server_uuid] = state
        # What a new controller sees first has been told by its predecessor, but for a server that is new itself.
        if before == state or (before is None and item.get("status")):
            return
        namespace = item["metadata"]["namespace"]
        with suppress(ClusterError):
            await self._api.create(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", self._event(item, ready))

    def forget(self, server_uuid: str) -> None:
        """Forget a server that has gone."""
        self._last.pop(server_uuid, None)

    def _event(self, item: Object, ready: Condition) -> Object:
        metadata = item["metadata"]
        calm = ready.status == CONDITION_STATUS_TRUE or ready.reason in _CALM
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name'][:40]}.{uuid.uuid4().hex[:16]}",
                "namespace": metadata["namespace"],
            },
            "eventTime": self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "type": "Normal" if calm else "Warning",
            "reason": ready.reason,
            "note": ready.message[:_MAX_MESSAGE],
            "action": "Reconcile",
            "regarding": {
                "apiVersion": f"{GROUP}/{VERSION}",
                "kind": "ModelServe",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "reportingController": REPORTER,
            "reportingInstance": self._instance[:128],
        }
