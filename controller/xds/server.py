"""The control plane: holds what Envoy should have and serves it to every Envoy that connects, as delta ADS.

A change of one server rebuilds and sends the resources of that server and of its model names, whatever else exists.
Changes made in one go are sent in one go.

Invariant: nothing is sent before the first `publish`. A controller that has just started knows nothing, and an empty
snapshot would take down what works.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from controller.xds import builders
from controller.xds.builders import InferenceSettings, ManagementSettings, ServerEndpoints, ServiceSettings
from controller.xds.digest import EVERYTHING, Digest, Told
from controller.xds.snapshot import CDS, EDS, LDS, RDS, Snapshot
from controller.xds.stream import DeltaStream, Refusal
from llamesh import names
from llamesh.kit import envoy_api

ASKED_KINDS = frozenset({"keys", "standings", "contracts"})
"""Revoked keys, standings of users that have ended, and contracts that limit something."""

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
        self._facts: dict[str, dict[str, Any]] = {}
        self._idle: Counter[int] = Counter()
        """How many servers have which limit."""
        self._contexts: Counter[int] = Counter()
        """How many servers have which context."""
        self._routed: tuple[dict[str, dict[str, Any]], int, int] = ({}, 0, 0)
        """Facts, limit and context that the routes were last made with."""
        self._asked: dict[str, Collection[str]] = {}
        """Ids that Admission is asked about, by what they are of; None of them may be known yet."""
        self._digest = Digest()
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
            listeners[names.INFERENCE_LISTENER] = builders.inference_listener(inference)
            listeners[names.HELD_LISTENER] = builders.held_listener(inference)
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
        self._count(server, 1)
        if previous:
            self._count(previous, -1)
        for name in set(previous.clusters if previous else ()) - set(server.clusters):
            self._leave(name, server.server_uuid)
        for name in server.clusters:
            self._members.setdefault(name, {})[server.server_uuid] = server
            self._build(name)
        self._set_facts({*server.clusters, *(previous.clusters if previous else ())})

    def remove_server(self, server_uuid: str) -> None:
        """Forgets a server. Nothing happens where it is not known."""
        server = self._servers.pop(server_uuid, None)
        if server is None:
            return
        self._count(server, -1)
        for name in server.clusters:
            self._leave(name, server_uuid)
        self._set_facts(server.clusters)

    def set_asked(self, kind: str, ids: Collection[str], added: Collection[str] | None = None) -> None:
        """Sets the ids of one kind (of ASKED_KINDS) that Admission is asked about. `added`: only these are new, all others were there.

        Until all kinds are known, Admission is asked about every token.
        """
        known = len(self._asked)
        if added is None and kind in self._asked and set(ids) == set(self._asked[kind]):
            return
        # A copy, unless the owner says what is new in it.
        self._asked[kind] = ids if added is not None else list(ids)
        if added is None or known != len(self._asked):
            self._digest.set(each for kind in self._asked.values() for each in kind)
        else:
            self._digest.add(added)
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

    def _set_facts(self, clusters: Iterable[str]) -> None:
        for name in clusters:
            if facts := builders.cluster_facts(self._members.get(name, {}).values()):
                self._facts[name] = facts
            else:
                self._facts.pop(name, None)
        if (self._facts, *self._largest()) != self._routed:
            self._set_inference_routes()

    def _count(self, server: ServerEndpoints, number: int) -> None:
        """Take a server into the largest limit and context of all, or out of them."""
        for counter, value in ((self._idle, server.idle_seconds), (self._contexts, server.context)):
            counter[value] += number
            if not counter[value]:
                del counter[value]

    def _largest(self) -> tuple[int, int]:
        """The largest limit and context of all servers. They are seldom another server's after a change, so a change costs the
        same however many servers there are."""
        # A server whose context is not known may have any.
        context = 0 if 0 in self._contexts else max(self._contexts, default=0)
        return max(self._idle, default=builders.SILENCE_SECONDS), context

    def _set_inference_routes(self) -> None:
        if self._inference is None:
            routes = {}
        else:
            facts = {name: self._facts[name] for name in sorted(self._facts)}
            idle, context = self._largest()
            routes = {
                names.INFERENCE_LISTENER: builders.inference_routes(self._inference, facts, self._told(), idle, context)
            }
            self._routed = facts, idle, context
        self._replace(RDS, routes, self._snapshot.of(RDS).keys() - routes.keys())

    def _told(self) -> Told:
        return self._digest.told() if self._asked.keys() >= ASKED_KINDS else EVERYTHING

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
