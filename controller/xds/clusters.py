"""The Envoy clusters of members and of declared servers, and the endpoints of those servers.

Invariant: a server's cluster does not change when its replicas do; only its endpoints change. llamesh.names has the names of the clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controller.xds import templates
from llamesh import names

CLUSTER = "envoy.config.cluster.v3.Cluster"
ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"

SILENCE_SECONDS = 3600
"""llama.cpp's own default for --timeout."""
BUDGET_MARGIN_SECONDS = 5
"""Seconds that a server may be silent in addition to its wake budget, for any --timeout: the waker ends a held request, not Envoy, because
the waker knows why no engine was ready."""


@dataclass(frozen=True)
class ServiceSettings:
    """A member of the mesh that Envoy forwards to."""

    name: str
    address: str
    """Path of a Unix socket, or host:port."""
    http1: bool = False
    """Whether the member speaks HTTP/1.1 (the waker) rather than gRPC."""


@dataclass(frozen=True)
class ServerEndpoints:
    """The addresses of one declared server, and Envoy's limits for it."""

    server_uuid: str
    model_names: tuple[str, ...]
    """The names under which requests find it."""
    ready: tuple[str, ...]
    """The addresses of its ready replicas: paths of Unix sockets, or host:port. If empty, requests go to the waker."""
    max_connections: int
    """Connections that a cluster opens to one replica, plus one for each further worker of Envoy. A server has one cluster of its own and
    one for each name, so an engine needs (1 + names) * (max_connections + workers - 1) HTTP threads."""
    ask: bool = False
    """Whether Envoy asks Admission about each request to the server."""
    context: int = 0
    """Maximum number of tokens of a prompt and its answer together; 0 if unknown."""
    silence_seconds: int = SILENCE_SECONDS
    """Seconds that an engine of the server may take to send the head of an answer. llama.cpp itself does not end a silent request."""
    budget_seconds: int = 0
    """Seconds that a request may be held before an engine gets it."""

    @property
    def idle_seconds(self) -> int:
        """Seconds for which a request may have no byte in either direction: it is held, then its engine is silent."""
        return self.silence_seconds + self.budget_seconds

    @property
    def own_cluster(self) -> str:
        """The cluster that has only this server."""
        return names.server_cluster(self.server_uuid)

    @property
    def clusters(self) -> tuple[str, ...]:
        """Every cluster that this server is in."""
        return (self.own_cluster, *(names.model_cluster(name) for name in self.model_names))


def cluster_facts(servers: Iterable[ServerEndpoints]) -> dict[str, Any]:
    """Return the facts about a cluster of these servers for the route filter; empty if none differs from the defaults.

    The largest of several time limits counts.
    """
    members = list(servers)
    facts: dict[str, Any] = {"ask": True} if any(server.ask for server in members) else {}
    silence = max((server.silence_seconds for server in members), default=SILENCE_SECONDS)
    return facts if silence == SILENCE_SECONDS else facts | {"silence": silence}


def address(location: str) -> dict[str, Any]:
    """Return Envoy's address for the path of a Unix socket, or for host:port."""
    if location.startswith("/"):
        return {"pipe": {"path": location}}
    host, _, port = location.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def service_cluster(settings: ServiceSettings) -> Any:
    """Return the cluster of one member of the mesh."""
    options: dict[str, Any] = {"http_protocol_options": {}} if settings.http1 else {"http2_protocol_options": {}}
    values = {"name": settings.name, "address": address(settings.address), "protocol": options}
    return templates.render("clusters/service.yaml", CLUSTER, values)


def server_cluster(name: str, max_connections: int) -> Any:
    """Return a cluster of model servers. Its endpoints are a separate resource, so the cluster does not change when they do."""
    values = {"name": name, "stat_name": names.stat_name(name), "max_connections": max_connections}
    return templates.render("clusters/server.yaml", CLUSTER, values)


def endpoints(name: str, servers: Iterable[ServerEndpoints]) -> Any:
    """Return the endpoints of the cluster `name`: the ready replicas of all `servers`, and the waker with lower priority."""
    members = sorted(servers, key=lambda server: server.server_uuid)
    ready = [{"endpoint": {"address": address(at)}} for server in members for at in server.ready]
    values = {"name": name, "ready": ready}
    return templates.render("clusters/endpoints.yaml", ENDPOINTS, values)
