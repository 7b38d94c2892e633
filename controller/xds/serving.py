"""Envoy's control plane: serves the intent to every Envoy that connects, by delta ADS.

Envoy opens one stream and subscribes to types of resources. Each stream is a state machine (`stream`) with two tasks: a reader that
receives Envoy's requests (subscriptions, ACKs and NACKs), and the handler that yields responses. The handler waits for an event that the
reader sets after each request and that every change of the intent sets. Only the handler takes responses from the state machine, so
responses are sent in the order in which they were made, and all changes made in one step of the event loop are sent together. A caller of
`acknowledged` checks again after each request.

Invariant: nothing is sent before the first `publish`, because a controller that has just started has an empty snapshot, which would remove
the working configuration.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from controller.xds.clusters import ServerEndpoints, ServiceSettings
from controller.xds.inference import InferenceSettings
from controller.xds.intent import Changes, Intent
from controller.xds.management import ManagementSettings
from controller.xds.stream import DeltaStream, Nack
from llamesh.kit import envoy_api

_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


@dataclass
class Stats:
    """Counters of the control plane."""

    connected: int = 0
    """Envoys connected now."""
    acknowledged: int = 0
    """Responses that an Envoy acknowledged (ACK)."""
    refused: Counter[str] = field(default_factory=Counter)
    """Responses that an Envoy refused (NACK), by type URL."""
    last_nack: Nack | None = None


class ControlPlane:
    """Envoy's control plane. All methods belong to the event loop that serves it."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.intent = Intent()
        self._streams: dict[DeltaStream, asyncio.Event] = {}
        self._published = False
        self._progress = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Add the discovery service to a gRPC server."""
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._serve,
            request_deserializer=envoy_api.message_class("envoy.service.discovery.v3.DeltaDiscoveryRequest").FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        handlers = grpc.method_handlers_generic_handler(_SERVICE, {"DeltaAggregatedResources": handler})
        server.add_generic_rpc_handlers((handlers,))

    def set_static(
        self,
        services: Iterable[ServiceSettings],
        inference: InferenceSettings | None,
        management: Sequence[ManagementSettings],
    ) -> None:
        """Set the clusters of members and the listeners. Call it again when a setting or a signing key changes."""
        self._send(self.intent.set_static(services, inference, management))

    def set_server(self, server: ServerEndpoints) -> None:
        """Declare a server, or set its present addresses."""
        self._send(self.intent.set_server(server))

    def remove_server(self, server_uuid: str) -> None:
        """Remove a server. Does nothing if it is unknown."""
        self._send(self.intent.remove_server(server_uuid))

    def set_admission_ids(self, kind: str, ids: Collection[str], added: Collection[str] | None = None) -> None:
        """Set the ids of one kind that Envoy asks Admission about: see Intent.set_admission_ids."""
        self._send(self.intent.set_admission_ids(kind, ids, added))

    def publish(self) -> None:
        """Start to send: the initial configuration is complete. Later changes are sent at once."""
        self._published = True
        self._wake_streams()

    async def acknowledged(self, server_uuid: str, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until every connected Envoy has acknowledged the present clusters and endpoints of a server.

        If Envoy asks Admission about its requests, the routes must be acknowledged too. Return False if that did not happen within
        `timeout` seconds, also if no Envoy was connected or the server is unknown.
        """

        def done() -> bool:
            resources = self.intent.resources_of(server_uuid)
            return resources is not None and self._have(resources)

        return await self._until(done, timeout)

    async def settled(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until every connected Envoy has acknowledged everything. Return False as `acknowledged` does."""
        return await self._until(lambda: self._have(self.intent.resources()), timeout)

    def _have(self, resources: Iterable[tuple[str, str]]) -> bool:
        return all(stream.has(*resource) for resource in resources for stream in self._streams)

    async def _until(self, done: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                while not (self._streams and done()):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    def _send(self, changes: Changes) -> None:
        if not changes:
            return
        for stream in self._streams:
            for type_url, names in changes.items():
                stream.change(type_url, names)
        self._wake_streams()

    def _wake_streams(self) -> None:
        for wake in self._streams.values():
            wake.set()

    async def _serve(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        stream, wake = DeltaStream(self.intent.snapshot), asyncio.Event()
        self._streams[stream] = wake
        self.stats.connected += 1
        reader = asyncio.create_task(self._read(requests, stream, wake))
        try:
            while not reader.done():
                await wake.wait()
                wake.clear()
                if self._published:
                    for response in stream.responses():
                        yield response
            reader.result()
        finally:
            reader.cancel()
            del self._streams[stream]
            self.stats.connected -= 1
            self._progress.set()

    async def _read(self, requests: AsyncIterator[Any], stream: DeltaStream, wake: asyncio.Event) -> None:
        try:
            async for request in requests:
                nack = stream.receive(request)
                if nack:
                    self.stats.refused[nack.type_url] += 1
                    self.stats.last_nack = nack
                elif request.response_nonce:
                    self.stats.acknowledged += 1
                wake.set()
                self._progress.set()
        finally:
            wake.set()
