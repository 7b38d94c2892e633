"""Publishes the endpoints of one server to Envoy and records Envoy's acknowledgements.

Invariant: an engine is published once every connected Envoy has acknowledged endpoints with it. It is withdrawn once they have
acknowledged endpoints without it, or if no Envoy is connected.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from controller.xds.clusters import ServerEndpoints
from controller.xds.serving import ControlPlane

ACK_SECONDS = 5.0
"""Seconds without an acknowledgement after which Envoy counts as absent."""


class Publication:
    """Publication of one server to Envoy. Calls `changed(server_uuid)` whenever Envoy has acknowledged a change."""

    def __init__(self, server_uuid: str, control: ControlPlane, changed: Callable[[str], None]) -> None:
        self.envoy_connected = True
        """Whether an Envoy was connected at the last publication."""
        self._server_uuid = server_uuid
        self._control = control
        self._changed = changed
        self._sent: ServerEndpoints | None = None
        self._instances: frozenset[str] = frozenset()
        self._acknowledged: frozenset[str] = frozenset()
        self._routed: frozenset[str] | None = None
        self._waiting: asyncio.Task[None] | None = None

    def publish(self, endpoints: ServerEndpoints, instances: Collection[str]) -> None:
        """Publish the engines `instances` as the server's endpoints. Never yields to another task."""
        if endpoints == self._sent:
            return
        # A new name is not routed yet: a request for it would be answered with model_not_found.
        renamed = self._sent is not None and endpoints.model_names != self._sent.model_names
        self._routed = None if renamed else self._routed
        self._control.set_server(endpoints)
        self._sent = endpoints
        self._instances = frozenset(instances)
        self._acknowledged = frozenset() if renamed else self._acknowledged & self._instances
        self.cancel()
        self._waiting = asyncio.create_task(self._await_envoy(self._instances, frozenset(endpoints.model_names)))

    def is_published(self, instance: str) -> bool:
        """Return whether Envoy has this engine as an endpoint and may send it requests."""
        return instance in self._acknowledged

    def is_routed(self, *model_names: str) -> bool:
        """Return whether Envoy routes requests for this server's id and these names to its engines or to the waker."""
        return self._routed is not None and self._routed.issuperset(model_names)

    def is_withdrawn(self, instance: str) -> bool:
        """Return whether Envoy sends this engine no more requests."""
        sent_without = self._sent is not None and instance not in self._instances
        return sent_without and (self._waiting is None or not self.envoy_connected)

    def cancel(self) -> None:
        """Stop waiting for the acknowledgement."""
        if self._waiting:
            self._waiting.cancel()

    async def close(self) -> None:
        """Stop waiting for the acknowledgement, and return when the waiting task has ended."""
        self.cancel()
        if self._waiting:
            await asyncio.gather(self._waiting, return_exceptions=True)

    async def _await_envoy(self, instances: frozenset[str], model_names: frozenset[str]) -> None:
        """Wait for Envoy's acknowledgement without a time limit. After ACK_SECONDS Envoy counts as absent."""
        while not await self._control.acknowledged(self._server_uuid, ACK_SECONDS):
            if self.envoy_connected:
                self.envoy_connected = False
                self._changed(self._server_uuid)
        self._acknowledged = instances
        self._routed = model_names
        self.envoy_connected = True
        self._waiting = None
        self._changed(self._server_uuid)
