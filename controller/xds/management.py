"""A management listener and its routes as an Envoy message: REST, gRPC and gRPC-Web for some of the public services.

Invariant: the same values give the same bytes. Methods that are internal to the mesh have no route.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controller.xds import anonymous_callers, replies, scripts, templates, tls
from controller.xds.listeners import HEADER_LIMITS, cors_policy, listening
from controller.xds.public_api import Method, PublicApi
from controller.xds.restarts import HEALTH_TIMEOUT, MAX_HEALTH_RETRIES, MAX_RESTART_RETRIES, RESTART_BACKOFF
from controller.xds.tokens import ANY_BEARER, BEARER, SCHEME_IS_BEARER, TO_HEADER, TokenSettings, jwt_provider
from llamesh import names

LISTENER = "envoy.config.listener.v3.Listener"

_GATEWAY = "llamesh.v1.GatewayService"
# The last route. It is no direct response, because the CORS filter handles routes only, and because a REST call has this route until it is
# transcoded (a call without a token: `_rest_route`). The header is never set.
_NOWHERE = {
    "match": {"prefix": "/"},
    "route": {"cluster_header": names.CLUSTER_HEADER, "cluster_not_found_response_code": "NOT_FOUND"},
}


@dataclass(frozen=True)
class OpenService:
    """A gRPC service that needs no token: reflection, health."""

    name: str
    cluster: str
    upstream_name: str = ""
    """The full name by which the cluster knows it, if that is another name."""


@dataclass(frozen=True)
class ManagementSettings:
    """A management listener."""

    name: str
    addresses: Sequence[str]
    port: int
    tokens: TokenSettings
    services: tuple[tuple[str, str], ...]
    """Full names of the services that are served as REST, gRPC and gRPC-Web, each with its cluster."""
    descriptor_file: Path
    """A FileDescriptorSet with those services and google/rpc/error_details.proto."""
    open_services: tuple[OpenService, ...] = ()
    """Services for any caller."""
    allowed_origins: frozenset[str] = frozenset()
    """Origins of web pages that may call."""
    allowed_hosts: frozenset[str] = frozenset()
    """Host names (no port) under which people log in, in addition to those of the loopback interface."""
    any_host: bool = False
    """Whether programs may log in under any host name. Web pages may only under a known host name, or from an allowed origin."""
    secret_file: Path | None = None
    """File with the certificate that Envoy presents (llamesh.certificates); None: no TLS."""
    certificate_names: frozenset[str] = frozenset()
    """Names and addresses that the certificate is valid for."""
    max_body_bytes: int = 1 << 20
    """Largest request body."""
    trusted_proxies: int = 0
    """The number of proxies in front of Envoy that set x-forwarded-for."""
    open_methods: tuple[tuple[str, str], ...] = ()
    """Methods of other services that need no token, as (full name, cluster): `llamesh.v1.GatewayService/GetHealth`."""
    grpc_services: tuple[tuple[str, str], ...] = ()
    """More services, served as gRPC and gRPC-Web only, because their REST paths would be ambiguous at this port."""
    restart_retries: int = MAX_RESTART_RETRIES
    """How often a service that does not listen is tried again."""
    gateway_port: int = 0
    """Port of the listener that serves the gateway, if this one does not; else 0."""


def management_listener(settings: ManagementSettings) -> Any:
    """Return a management listener with its routes."""
    api = PublicApi(
        settings.descriptor_file,
        [service for service, _ in settings.services],
        [method for method, _ in settings.open_methods],
    )
    grpc_only = PublicApi(settings.descriptor_file, [service for service, _ in settings.grpc_services])
    clusters = dict((*settings.services, *settings.grpc_services))
    clusters |= {method.partition("/")[0]: cluster for method, cluster in settings.open_methods}
    routes = [
        _method_route(method, clusters[method.service], settings.restart_retries)
        for method in (*api.methods, *grpc_only.methods)
        if not method.internal
    ]
    routes += [_open_route(service, settings.restart_retries) for service in settings.open_services]
    routes += [_rest_route(path, _NOWHERE) for path in _anonymous_paths(api, settings)]
    routes += [
        route for method, cluster in settings.open_methods for route in _rest_routes(api, method, cluster, settings)
    ]
    values = {
        "name": settings.name,
        **listening(settings.addresses, settings.port),
        "max_body_bytes": settings.max_body_bytes,
        "max_body_without_token": anonymous_callers.MAX_BODY_BYTES,
        "trusted_proxies": settings.trusted_proxies,
        "any_case": jwt_provider(settings.tokens, ANY_BEARER, TO_HEADER),
        "usual": jwt_provider(settings.tokens, BEARER, TO_HEADER),
        "jwt_rules": [*_refused_without_token(settings), *_jwt_rules(api, settings.open_services)],
        "callers": anonymous_callers.known(settings.allowed_origins, settings.allowed_hosts, settings.addresses)
        | anonymous_callers.open_calls(api, [service.name for service in settings.open_services])
        | ({"pages only": True} if settings.any_host else {}),
        "without_token_lua": scripts.without_token(),
        "strict_json_lua": scripts.strict_json(api, _elsewhere(settings)),
        "transcoder": _transcoder(
            settings.descriptor_file, [service for service, _ in settings.services], settings.max_body_bytes
        ),
        "per_filter": cors_policy(settings.allowed_origins),
        "routes": [*routes, _NOWHERE],
        **HEADER_LIMITS,
        "replies": replies.management(
            {
                **HEADER_LIMITS,
                "max_body_bytes": f"{settings.max_body_bytes}, or without a token {anonymous_callers.MAX_BODY_BYTES}",
                **_no_call(settings),
            }
        ),
    }
    hosts = (*settings.allowed_hosts, *settings.addresses, *settings.certificate_names)
    return tls.put_before(templates.render("listeners/management.yaml", LISTENER, values), settings.secret_file, hosts)


def _no_call(settings: ManagementSettings) -> dict[str, Any]:
    """Return what the answer to a call that this listener does not have says about its port, for people and for programs."""
    if not settings.gateway_port:
        words = "This is a management port; requests for models (/v1/...) go to the inference port (8080, or LLAMESH_INFERENCE_PORT)."
        return {"no_call": words, "no_call_metadata": {}}
    metadata = {"service": settings.name, "port": str(settings.gateway_port)}
    return {"no_call": _elsewhere(settings), "no_call_metadata": metadata}


def _elsewhere(settings: ManagementSettings) -> str:
    """Say where the gateway's calls are; empty if they are here."""
    if not settings.gateway_port:
        return ""
    return f"This is the port of the {settings.name} service; logins and all other management calls go to port {settings.gateway_port}."


def _refused_without_token(settings: ManagementSettings) -> list[dict[str, Any]]:
    """Return the JWT filter's rules for calls of the gateway at the port of another service. They have no route, and their answer is that
    the port is the wrong one; an answer that asks for a token would send people to a login that this port does not have."""
    if not settings.gateway_port:
        return []
    api = PublicApi(settings.descriptor_file, [_GATEWAY])
    return [{"match": match} for match in ({"prefix": f"/{_GATEWAY}/"}, *_anonymous(api))]


def _transcoder(descriptor_file: Path, services: Sequence[str], max_body_bytes: int) -> Any:
    """Return the filter that transcodes the REST calls of these services."""
    values = {
        "descriptors": base64.b64encode(descriptor_file.read_bytes()).decode(),
        "services": list(services),
        "max_body_bytes": max_body_bytes,
    }
    return templates.tree("routes/transcoder.yaml", values)


def _rest_routes(api: PublicApi, name: str, cluster: str, settings: ManagementSettings) -> Iterator[Any]:
    """Yield the routes of the REST forms of one call.

    Only these routes transcode its service, because other paths of it may collide with the listener's own.
    """
    (method,) = (each for each in api.methods if each.path == f"/{name}")
    transcoder = _transcoder(settings.descriptor_file, [method.service], anonymous_callers.MAX_BODY_BYTES)
    for binding in method.bindings:
        route = _rest_route(binding.path, _route({}, cluster, 0, read_only=True))
        route["typed_per_filter_config"]["envoy.filters.http.grpc_json_transcoder"] = transcoder
        yield route


def _anonymous_paths(api: PublicApi, settings: ManagementSettings) -> list[str]:
    """Return the REST paths of the listener's own calls that need no token."""
    own = {service for service, _ in settings.services}
    return [
        binding.path
        for method in api.methods
        if method.anonymous and method.service in own
        for binding in method.bindings
    ]


def _rest_route(path: str, route: dict[str, Any]) -> dict[str, Any]:
    """Return a route for a REST call without a token, which bounds its body. The transcoder ignores a slash at the end of a path."""
    bound = templates.tree("routes/bounded_body.yaml", {"max_body_bytes": anonymous_callers.MAX_BODY_BYTES})
    return {
        **route,
        "match": {"safe_regex": {"regex": f"{re.escape(path)}/?"}},
        "typed_per_filter_config": {"envoy.filters.http.buffer": bound},
    }


def _bounded(route: dict[str, Any]) -> dict[str, Any]:
    """Return a route of gRPC for callers without a token: Envoy holds little of a body for a retry."""
    return {**route, "request_body_buffer_limit": anonymous_callers.MAX_BODY_BYTES}


def _method_route(method: Method, cluster: str, retries: int) -> Any:
    health = method.name == "GetHealth"
    route = _route(
        {"path": method.path},
        cluster,
        MAX_HEALTH_RETRIES if health else retries,
        read_only=method.is_read_only,
        timeout=HEALTH_TIMEOUT if health else "0s",
    )
    return _bounded(route) if method.anonymous else route


def _open_route(service: OpenService, retries: int) -> Any:
    """Return the route of an open service: all its methods only read. Health has few retries, like GetHealth."""
    match = {"prefix": f"/{service.name}/"}
    route = _route(match, service.cluster, MAX_HEALTH_RETRIES if service.upstream_name else retries, read_only=True)
    if service.upstream_name:
        route["route"]["prefix_rewrite"] = f"/{service.upstream_name}/"
    return _bounded(route)


def _route(match: dict[str, Any], cluster: str, retries: int, *, read_only: bool, timeout: str = "0s") -> Any:
    values = {
        "match": match,
        "cluster": cluster,
        "timeout": timeout,
        "retry_on": "connect-failure,refused-stream,reset" if read_only else "connect-failure,refused-stream",
        "retries": retries,
        "backoff": RESTART_BACKOFF,
    }
    return templates.tree("routes/service.yaml", values)


def _jwt_rules(api: PublicApi, open_services: Iterable[OpenService]) -> list[dict[str, Any]]:
    """Return the JWT filter's rules: those of calls that need no token, by exact path, then that of all others. The first match counts."""
    without = [{"prefix": f"/{service.name}/"} for service in open_services] + _anonymous(api)
    return [{"match": match} for match in without] + [
        {"match": {"prefix": "/", "headers": [SCHEME_IS_BEARER]}, "requires": {"provider_name": "any_case"}},
        {"match": {"prefix": "/"}, "requires": {"provider_name": "usual"}},
    ]


def _anonymous(api: PublicApi) -> list[dict[str, Any]]:
    """Return the matches of the calls of an API that need no token, as gRPC and as REST."""
    without: list[dict[str, Any]] = []
    for method in api.methods:
        if method.anonymous:
            without.append({"path": method.path})
            without += [
                {"path": path, "headers": [_verb_is(verb)]}
                for each in method.bindings
                # The transcoder ignores a slash at the end of a path, and strict_json.lua turns a HEAD into a GET.
                for path in (each.path, f"{each.path}/")
                for verb in (("GET", "HEAD") if each.verb == "GET" else (each.verb,))
            ]
    return without


def _verb_is(verb: str) -> dict[str, Any]:
    return {"name": ":method", "string_match": {"exact": verb}}
