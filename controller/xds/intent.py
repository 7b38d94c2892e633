"""The configuration that Envoy should have, as a function of the controller's declarations: no I/O, no streams.

The controller sets facts (the listeners, one server, the tokens that Envoy must ask Admission about). Each change builds the resources that
depend on it, puts them into the snapshot, and returns the names of those whose content has changed; `serving` sends them.

Invariant: a change of one server builds only the resources of that server and of its model names, for any number of servers. The inference
routes are built again only if a fact that they contain has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from controller.xds.clusters import (
    SILENCE_SECONDS,
    ServerEndpoints,
    ServiceSettings,
    cluster_facts,
    endpoints,
    server_cluster,
    service_cluster,
)
from controller.xds.digest import EVERYTHING, Digest, DigestMetadata
from controller.xds.inference import InferenceSettings, held_listener, inference_listener, inference_routes
from controller.xds.management import ManagementSettings, management_listener
from controller.xds.snapshot import CDS, EDS, LDS, RDS, TYPES, Snapshot
from llamesh import names

ADMISSION_ID_KINDS = frozenset({"keys", "standings", "contracts"})
"""The kinds of ids that Envoy asks Admission about: revoked keys, ended standings of users, contracts with a limit."""

Changes: TypeAlias = Mapping[str, Collection[str]]
"""Names of resources that were changed or removed, by type URL."""


class Intent:
    """The resources that every Envoy should have."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._changed: dict[str, set[str]] = {}
        self._servers: dict[str, ServerEndpoints] = {}
        self._members: dict[str, dict[str, ServerEndpoints]] = {}
        """The servers of each cluster."""
        self._facts: dict[str, dict[str, Any]] = {}
        """Facts about each cluster that differs from the defaults."""
        self._idle: Counter[int] = Counter()
        """Number of servers for each value of idle_seconds."""
        self._contexts: Counter[int] = Counter()
        """Number of servers for each value of context."""
        self._routed: tuple[dict[str, dict[str, Any]], int, int] = ({}, 0, 0)
        """Facts, idle_seconds and context in the present routes."""
        self._admission_ids: dict[str, Collection[str]] = {}
        """Ids that Envoy asks Admission about, by kind. A kind that is missing is not yet known."""
        self._digest = Digest()
        self._inference: InferenceSettings | None = None

    def set_static(
        self,
        services: Iterable[ServiceSettings],
        inference: InferenceSettings | None,
        management: Sequence[ManagementSettings],
    ) -> Changes:
        """Set the configuration that does not depend on servers: clusters of members, and listeners. Others are removed."""
        self._inference = inference
        clusters = {settings.name: service_cluster(settings) for settings in services}
        listeners = {settings.name: management_listener(settings) for settings in management}
        if inference:
            listeners[names.INFERENCE_LISTENER] = inference_listener(inference)
            listeners[names.HELD_LISTENER] = held_listener(inference)
        own = {name for name in self.snapshot.of(CDS) if name not in self._members}
        self._replace(CDS, clusters, own - clusters.keys())
        self._replace(LDS, listeners, self.snapshot.of(LDS).keys() - listeners.keys())
        self._set_routes()
        return self._take()

    def set_server(self, server: ServerEndpoints) -> Changes:
        """Declare a server, or set its present addresses."""
        previous = self._servers.get(server.server_uuid)
        if previous == server:
            return {}
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
        return self._take()

    def remove_server(self, server_uuid: str) -> Changes:
        """Remove a server. Does nothing if it is unknown."""
        server = self._servers.pop(server_uuid, None)
        if server is None:
            return {}
        self._count(server, -1)
        for name in server.clusters:
            self._leave(name, server_uuid)
        self._set_facts(server.clusters)
        return self._take()

    def set_admission_ids(self, kind: str, ids: Collection[str], added: Collection[str] | None = None) -> Changes:
        """Set the ids of one of ADMISSION_ID_KINDS that Envoy asks Admission about.

        Until all kinds are known, Envoy asks about every token.

        Args:
            kind: the kind of the ids.
            ids: all ids of the kind.
            added: those of them that are new, if the caller knows that all others were set before.
        """
        known = len(self._admission_ids)
        if added is None and kind in self._admission_ids and set(ids) == set(self._admission_ids[kind]):
            return {}
        # Without `added`, the owner may change its collection later, and the change must be visible as a difference: so a copy is stored.
        self._admission_ids[kind] = ids if added is not None else list(ids)
        if added is None or known != len(self._admission_ids):
            self._digest.set(each for kind in self._admission_ids.values() for each in kind)
        else:
            self._digest.add(added)
        self._set_routes()
        return self._take()

    def clusters(self) -> Collection[str]:
        """Return the clusters of all servers and of all their model names."""
        return self._members.keys()

    def resources_of(self, server_uuid: str) -> Collection[tuple[str, str]] | None:
        """Return type URL and name of each resource that Envoy needs for a server's requests; None if the server is unknown.

        The routes are included only if Envoy asks Admission about the server's requests.
        """
        server = self._servers.get(server_uuid)
        if server is None:
            return None
        routes = [(RDS, name) for name in self.snapshot.of(RDS)] if server.ask else []
        return [*((type_url, name) for name in server.clusters for type_url in (CDS, EDS)), *routes]

    def resources(self) -> Iterable[tuple[str, str]]:
        """Return type URL and name of every resource."""
        return ((type_url, name) for type_url in TYPES for name in self.snapshot.of(type_url))

    def _leave(self, cluster: str, server_uuid: str) -> None:
        members = self._members[cluster]
        members.pop(server_uuid, None)
        if members:
            self._build(cluster)
            return
        del self._members[cluster]
        for type_url in (CDS, EDS):
            self._remove(type_url, cluster)

    def _build(self, cluster: str) -> None:
        members = self._members[cluster].values()
        connections = min(server.max_connections for server in members)
        self._put(CDS, cluster, server_cluster(cluster, connections))
        self._put(EDS, cluster, endpoints(cluster, members))

    def _set_facts(self, clusters: Iterable[str]) -> None:
        for name in clusters:
            if facts := cluster_facts(self._members.get(name, {}).values()):
                self._facts[name] = facts
            else:
                self._facts.pop(name, None)
        if (self._facts, *self._largest()) != self._routed:
            self._set_routes()

    def _count(self, server: ServerEndpoints, number: int) -> None:
        """Add a server to the counts of idle_seconds and context; with -1, remove it from them."""
        for counter, value in ((self._idle, server.idle_seconds), (self._contexts, server.context)):
            counter[value] += number
            if not counter[value]:
                del counter[value]

    def _largest(self) -> tuple[int, int]:
        """Return the largest idle_seconds and context of all servers. The cost depends on the number of values, not of servers."""
        # A server of unknown context may have any context.
        context = 0 if 0 in self._contexts else max(self._contexts, default=0)
        return max(self._idle, default=SILENCE_SECONDS), context

    def _set_routes(self) -> None:
        if self._inference is None:
            routes = {}
        else:
            facts = {name: self._facts[name] for name in sorted(self._facts)}
            idle, context = self._largest()
            message = inference_routes(self._inference, facts, self._digest_metadata(), idle, context)
            routes = {names.INFERENCE_LISTENER: message}
            self._routed = facts, idle, context
        self._replace(RDS, routes, self.snapshot.of(RDS).keys() - routes.keys())

    def _digest_metadata(self) -> DigestMetadata:
        return self._digest.metadata() if self._admission_ids.keys() >= ADMISSION_ID_KINDS else EVERYTHING

    def _replace(self, type_url: str, present: Mapping[str, Any], gone: Iterable[str]) -> None:
        for name, content in present.items():
            self._put(type_url, name, content)
        for name in list(gone):
            self._remove(type_url, name)

    def _put(self, type_url: str, name: str, content: Any) -> None:
        if self.snapshot.put(name, content):
            self._changed.setdefault(type_url, set()).add(name)

    def _remove(self, type_url: str, name: str) -> None:
        if self.snapshot.remove(type_url, name):
            self._changed.setdefault(type_url, set()).add(name)

    def _take(self) -> Changes:
        changed, self._changed = self._changed, {}
        return changed
