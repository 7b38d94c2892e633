"""The Envoy clusters of members and of declared servers, and the endpoints of those servers.

Invariant: a server's cluster does not change when its replicas do; only its endpoints change. llamesh.names has the names of the clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.xds import templates
from llamesh import names
from llamesh.addresses import host_and_port, is_ip_address

CLUSTER = "envoy.config.cluster.v3.Cluster"
_PROTOCOL = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"

SILENCE_SECONDS = 3600
"""llama.cpp's own default for --timeout."""
BUDGET_MARGIN_SECONDS = 5
"""Seconds that a server may be silent in addition to its wake budget, for any --timeout: the waker ends a held request, not Envoy, because
the waker knows why no engine was ready."""

KEEPALIVE = {"interval": "30s", "timeout": "10s"}
"""HTTP/2 pings on connections to members over TCP, where a machine may vanish without a word."""
CONNECTION_SECONDS = 600
"""Age at which Envoy replaces a connection to a member over TCP, so that none is used with a certificate that has expired."""


@dataclass(frozen=True)
class ServiceSettings:
    """A member of the mesh that Envoy forwards to."""

    name: str
    address: str
    """Path of a Unix socket, or host:port."""
    http1: bool = False
    """Whether the member speaks HTTP/1.1 (the waker) rather than gRPC."""
    tls: MemberIdentity | None = None
    """The identity that the member must prove; None on a Unix socket."""


@dataclass(frozen=True)
class MemberIdentity:
    """A member over TCP, and the files (SDS) with Envoy's own certificate and the authorities that it trusts."""

    identity: str
    """The URI in the member's certificate."""
    host_name: str
    certificate_file: Path
    authorities_file: Path


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
    host, port = host_and_port(location)
    return {"socket_address": {"address": host, "port_value": port}}


def service_cluster(settings: ServiceSettings) -> Any:
    """Return the cluster of one member of the mesh."""
    options: dict[str, Any] = {"http_protocol_options": {}} if settings.http1 else {"http2_protocol_options": {}}
    protocol: dict[str, Any] = {"@type": _PROTOCOL, "explicit_http_config": options}
    tls = settings.tls
    if tls:
        protocol["common_http_protocol_options"] = {"max_connection_duration": f"{CONNECTION_SECONDS}s"}
        if not settings.http1:
            options["http2_protocol_options"] = {"connection_keepalive": KEEPALIVE}
    values = {
        "name": settings.name,
        "type": "STRICT_DNS" if tls and not is_ip_address(host_and_port(settings.address)[0]) else "STATIC",
        "address": address(settings.address),
        "protocol": protocol,
    }
    cluster = templates.render("clusters/service.yaml", CLUSTER, values)
    if tls:
        added = {
            "identity": tls.identity,
            "host_name": tls.host_name,
            "alpn": "http/1.1" if settings.http1 else "h2",
            "certificate_file": str(tls.certificate_file),
            "authorities_file": str(tls.authorities_file),
        }
        cluster.MergeFrom(templates.render("clusters/member_tls.yaml", CLUSTER, added))
    return cluster


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
