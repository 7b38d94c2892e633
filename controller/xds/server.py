"""The control plane: holds what Envoy should have and serves it to every Envoy that connects, as delta ADS.

A change of one server rebuilds and sends the resources of that server and of its model names, whatever else exists.
Changes made in one go are sent in one go.

Invariant: nothing is sent before the first `publish`. A controller that has just started knows nothing, and an empty
snapshot would take down what works.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from controller.xds import builders
from controller.xds.builders import InferenceSettings, ManagementSettings, ServerEndpoints, ServiceSettings
from controller.xds.snapshot import CDS, EDS, LDS, RDS, Snapshot
from controller.xds.stream import DeltaStream, Refusal
from llamesh.kit import envoy_api

_SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


@dataclass
class Stats:
    """How the control plane does."""

    connected: int = 0
    """Envoys connected now."""
    acknowledged: int = 0
    """Responses that an Envoy took."""
    refused: Counter[str] = field(default_factory=Counter)
    """Responses that an Envoy did not take (NACK), by type URL."""
    last_refusal: Refusal | None = None
    """The last one, with Envoy's own words."""


class ControlPlane:
    """Envoy's control plane. All methods belong to the event loop that serves it."""

    def __init__(self) -> None:
        self.stats = Stats()
        self._snapshot = Snapshot()
        self._streams: dict[DeltaStream, asyncio.Event] = {}
        self._published = False
        self._progress = asyncio.Event()
        self._servers: dict[str, ServerEndpoints] = {}
        self._members: dict[str, dict[str, ServerEndpoints]] = {}
        self._asked: set[str] = set()
        self._contexts: Counter[int] = Counter()
        self._context = 0
        self._revoked: frozenset[str] = frozenset()
        self._inference: InferenceSettings | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds the discovery service to a gRPC server."""
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
        """Sets what does not depend on servers: the services' clusters and the listeners. Those not named any more
        are removed.

        Call it again when a setting or a signing key changes.
        """
        self._inference = inference
        clusters = {settings.name: builders.service_cluster(settings) for settings in services}
        listeners = {settings.name: builders.management_listener(settings) for settings in management}
        if inference:
            listeners["inference"] = builders.inference_listener(inference)
            listeners["held"] = builders.held_listener(inference)
        own = {name for name in self._snapshot.of(CDS) if name not in self._members}
        self._replace(CDS, clusters, own - clusters.keys())
        self._replace(LDS, listeners, self._snapshot.of(LDS).keys() - listeners.keys())
        self._set_inference_routes()

    def set_server(self, server: ServerEndpoints) -> None:
        """Declares a server, or says where it can be reached now."""
        previous = self._servers.get(server.server_uuid)
        if previous == server:
            return
        self._servers[server.server_uuid] = server
        for name in set(previous.clusters if previous else ()) - set(server.clusters):
            self._leave(name, server.server_uuid)
        for name in server.clusters:
            self._members.setdefault(name, {})[server.server_uuid] = server
            self._build(name)
        self._set_asked({*server.clusters, *(previous.clusters if previous else ())})
        self._set_context(previous, server)

    def remove_server(self, server_uuid: str) -> None:
        """Forgets a server. Nothing happens where it is not known."""
        server = self._servers.pop(server_uuid, None)
        if server is None:
            return
        for name in server.clusters:
            self._leave(name, server_uuid)
        self._set_asked(server.clusters)
        self._set_context(server, None)

    def set_revoked(self, token_ids: Iterable[str]) -> None:
        """Sets the ids (`jti`) of tokens that no longer count though they have not expired."""
        revoked = frozenset(token_ids)
        if revoked != self._revoked:
            self._revoked = revoked
            self._set_inference_routes()

    def publish(self) -> None:
        """Opens the gate: everything that must be known at the start has been set. Later changes go out by
        themselves."""
        self._published = True
        self._wake_streams()

    async def acknowledged(self, server_uuid: str, timeout: float) -> bool:  # noqa: ASYNC109
        """Waits until every connected Envoy has acknowledged the present clusters and endpoints of a server, and that admission is asked
        for its requests if it is.

        False where that did not happen within `timeout` seconds, where no Envoy was connected in that time, or where
        the server is unknown.
        """

        def done() -> bool:
            server = self._servers.get(server_uuid)
            if server is None:
                return False
            clusters = [(type_url, name) for name in server.clusters for type_url in (CDS, EDS)]
            routes = [(RDS, name) for name in self._snapshot.of(RDS)] if server.ask else []
            return all(stream.has(*resource) for stream in self._streams for resource in (*clusters, *routes))

        return await self._until(done, timeout)

    async def settled(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Waits until every connected Envoy has acknowledged everything; with the same limits as `acknowledged`."""

        def done() -> bool:
            return all(
                stream.has(type_url, name)
                for stream in self._streams
                for type_url in (CDS, EDS, LDS, RDS)
                for name in self._snapshot.of(type_url)
            )

        return await self._until(done, timeout)

    async def _until(self, done: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                while not (self._streams and done()):
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            return False
        return True

    def _leave(self, cluster: str, server_uuid: str) -> None:
        members = self._members[cluster]
        members.pop(server_uuid, None)
        if members:
            self._build(cluster)
            return
        del self._members[cluster]
        for type_url in (CDS, EDS):
            if self._snapshot.remove(type_url, cluster):
                self._changed(type_url, (cluster,))

    def _build(self, cluster: str) -> None:
        members = self._members[cluster].values()
        connections = min(server.max_connections for server in members)
        if self._snapshot.put(cluster, builders.server_cluster(cluster, connections)):
            self._changed(CDS, (cluster,))
        if self._snapshot.put(cluster, builders.endpoints(cluster, members)):
            self._changed(EDS, (cluster,))

    def _set_asked(self, clusters: Iterable[str]) -> None:
        asked = set(self._asked)
        for name in clusters:
            if any(server.ask for server in self._members.get(name, {}).values()):
                asked.add(name)
            else:
                asked.discard(name)
        if asked != self._asked:
            self._asked = asked
            self._set_inference_routes()

    def _set_context(self, before: ServerEndpoints | None, now: ServerEndpoints | None) -> None:
        """Tell the routes the largest context of all servers. It is seldom another server's after a change, so a change
        costs the same however many servers there are."""
        self._contexts.subtract([before.context] if before else ())
        self._contexts.update([now.context] if now else ())
        self._contexts = +self._contexts
        # A server whose context is not known may have any.
        context = 0 if self._contexts[0] else max(self._contexts, default=0)
        if context != self._context:
            self._context = context
            self._set_inference_routes()

    def _set_inference_routes(self) -> None:
        routes = {}
        if self._inference:
            known = (sorted(self._asked), sorted(self._revoked), self._context)
            routes["inference"] = builders.inference_routes(self._inference, *known)
        self._replace(RDS, routes, self._snapshot.of(RDS).keys() - routes.keys())

    def _replace(self, type_url: str, present: dict[str, Any], gone: Iterable[str]) -> None:
        changed = [name for name, content in present.items() if self._snapshot.put(name, content)]
        changed += [name for name in list(gone) if self._snapshot.remove(type_url, name)]
        self._changed(type_url, changed)

    def _changed(self, type_url: str, names: Sequence[str]) -> None:
        for stream in self._streams:
            stream.change(type_url, names)
        self._wake_streams()

    def _wake_streams(self) -> None:
        for wake in self._streams.values():
            wake.set()

    async def _serve(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        stream, wake = DeltaStream(self._snapshot), asyncio.Event()
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
                refusal = stream.receive(request)
                if refusal:
                    self.stats.refused[refusal.type_url] += 1
                    self.stats.last_refusal = refusal
                elif request.response_nonce:
                    self.stats.acknowledged += 1
                wake.set()
                self._progress.set()
        finally:
            wake.set()
