"""Plain values in, Envoy messages out. Nothing here does I/O beyond reading the templates, and the same values always
give the same bytes.

The names of clusters and headers stand in llamesh.names.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controller.xds import callers, header_names, replies, templates
from controller.xds.digest import NOTHING, Told
from controller.xds.public_api import PublicApi
from llamesh import names
from llamesh.kit import limits
from llamesh.kit.errors import PREFIX, Reason, spec_of
from llamesh.kit.inference_errors import ANTHROPIC_TYPES
from llamesh.kit.origins import expression, is_pattern

CLUSTER = "envoy.config.cluster.v3.Cluster"
ENDPOINTS = "envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = "envoy.config.listener.v3.Listener"
ROUTES = "envoy.config.route.v3.RouteConfiguration"

RESTART_BUDGET_SECONDS = 60
"""How long Envoy waits for a member that restarts. The supervisor pauses at most 30 s before it starts one again
(llamesh/cli/mesh/restarts.py), and a start takes some seconds."""
RESTART_RETRIES = 120
_RESTART_BACKOFF = {"base_interval": "0.02s", "max_interval": "1s"}
"""Envoy waits a random part of the interval, which doubles up to the longest: 120 retries wait 57 s on average, and
with a deviation of 3 s never less than 45."""
_HEALTH_RETRIES = 8
"""Of GetHealth, which is asked by those who want to know soon: some 3 s."""
_HEALTH_TIMEOUT = "3s"
"""Longer than the gateway waits for all others. If it is stopped, Envoy answers 504 then."""

SILENCE_SECONDS = 3600
"""llama.cpp's own default for --timeout."""
BUDGET_MARGIN_SECONDS = 5
"""A request that is held is ended by the waker, which can say why no engine was ready, and not by Envoy: a server may be silent for
so long after its wake budget, whatever its --timeout."""

_HEADER_LIMITS = {"max_headers_kib": 60, "max_headers_count": 100}
"""What the front door takes of headers, Envoy's own defaults. Engines, which take 8 KB each, get few of them: header_names."""


@dataclass(frozen=True)
class TokenSettings:
    """How the mesh's tokens are verified. Algorithms are those of the keys, never those a token names."""

    jwks: str
    """The public keys as a JSON Web Key Set; for HS256 an `oct` key. Every key names its `alg`."""
    issuer: str = names.ISSUER
    audience: str = names.AUDIENCE
    clock_skew_seconds: int = 2
    """How long after its expiry a token still counts. Never 0, which Envoy reads as 60."""


@dataclass(frozen=True)
class InferenceSettings:
    """The inference listener."""

    addresses: Sequence[str]
    port: int
    tokens: TokenSettings
    allow_anonymous: bool
    """Requests without a token are served, subject to the rules on origin and host."""
    allowed_origins: frozenset[str] = frozenset()
    """Origins of web pages that may call, as browsers write them (`http://localhost:5173`) or as patterns (llamesh.kit.origins)."""
    allowed_hosts: frozenset[str] = frozenset()
    """Host names (no port), beside those of the loopback interface, under which anonymous requests are answered."""
    max_body_bytes: int = 16 << 20
    """Largest request body; it is held in memory until an engine has answered."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Limits of a request that differ from the table's defaults (llamesh.kit.limits)."""
    request_seconds: int = 600
    """How long a client may take to send its request."""
    admission_timeout_seconds: int = RESTART_BUDGET_SECONDS
    """How long Admission may take to answer, a restart of the contract service included."""
    restart_retries: int = RESTART_RETRIES
    """How often a member that does not listen is tried again."""


@dataclass(frozen=True)
class OpenService:
    """A service that needs no token, gRPC only: reflection, health."""

    name: str
    cluster: str
    asked_as: str = ""
    """Full name by which the cluster knows it, where that is another."""


@dataclass(frozen=True)
class ManagementSettings:
    """A management listener."""

    name: str
    addresses: Sequence[str]
    port: int
    tokens: TokenSettings
    services: tuple[tuple[str, str], ...]
    """Full names of the services that are served as REST, gRPC and gRPC-Web, each with the cluster that has it."""
    descriptor_file: Path
    """A FileDescriptorSet with those services and google/rpc/error_details.proto."""
    open_services: tuple[OpenService, ...] = ()
    """Services for any caller."""
    allowed_origins: frozenset[str] = frozenset()
    """Origins of web pages that may call."""
    allowed_hosts: frozenset[str] = frozenset()
    """Host names (no port), beside those of the loopback interface, under which people log in."""
    any_host: bool = False
    """Programs log in under any host name; web pages only under those that are known, or from an allowed origin."""
    max_body_bytes: int = 1 << 20
    """Largest request body."""
    trusted_proxies: int = 0
    """Proxies in front of Envoy that say in x-forwarded-for whom a request comes from."""
    restart_retries: int = RESTART_RETRIES
    """How often a service that does not listen is tried again."""


@dataclass(frozen=True)
class ServiceSettings:
    """A member of the mesh that Envoy forwards to."""

    name: str
    address: str
    """Path of a Unix socket, or host:port."""
    http1: bool = False
    """Speaks HTTP/1.1 (the waker) rather than gRPC."""


@dataclass(frozen=True)
class ServerEndpoints:
    """Where one declared server can be reached now."""

    server_uuid: str
    model_names: tuple[str, ...]
    """Names under which requests find it."""
    ready: tuple[str, ...]
    """Its ready replicas: paths of Unix sockets, or host:port. Empty: requests go to the waker."""
    max_connections: int
    """Connections that a cluster opens to one replica, and one more for each further worker of Envoy. A server has one
    cluster of its own and one per name, so an engine needs (1 + names) * (max_connections + workers - 1) HTTP threads."""
    ask: bool = False
    """Admission is asked about each request to it."""
    context: int = 0
    """Tokens that a prompt and its answer may have together on it. 0: not known."""
    silence_seconds: int = SILENCE_SECONDS
    """How long it may take to begin an answer: llama.cpp does not end what is silent."""
    budget_seconds: int = 0
    """How long a request may be held until an engine is there, before that."""

    @property
    def idle_seconds(self) -> int:
        """How long a request to it may be without a byte in either direction: it is held, then its engine is silent."""
        return self.silence_seconds + self.budget_seconds

    @property
    def own_cluster(self) -> str:
        """The cluster that holds this server only."""
        return names.server_cluster(self.server_uuid)

    @property
    def clusters(self) -> tuple[str, ...]:
        """Every cluster this server is in."""
        return (self.own_cluster, *(names.model_cluster(name) for name in self.model_names))


def cluster_facts(servers: Iterable[ServerEndpoints]) -> dict[str, Any]:
    """What the route filter is told about a cluster of these servers; empty if it is as usual. Of several limits the largest counts."""
    members = list(servers)
    facts: dict[str, Any] = {"ask": True} if any(server.ask for server in members) else {}
    silence = max((server.silence_seconds for server in members), default=SILENCE_SECONDS)
    return facts if silence == SILENCE_SECONDS else facts | {"silence": silence}


def address(location: str) -> dict[str, Any]:
    """Envoy's address for the path of a Unix socket, or for host:port."""
    if location.startswith("/"):
        return {"pipe": {"path": location}}
    host, _, port = location.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def service_cluster(settings: ServiceSettings) -> Any:
    """The cluster of one of the mesh's own services."""
    options: dict[str, Any] = {"http_protocol_options": {}} if settings.http1 else {"http2_protocol_options": {}}
    values = {"name": settings.name, "address": address(settings.address), "protocol": options}
    return templates.render("clusters/service.yaml", CLUSTER, values)


def server_cluster(name: str, max_connections: int) -> Any:
    """A cluster of model servers. Its endpoints come apart, so it does not change when they do."""
    values = {"name": name, "stat_name": names.stat_name(name), "max_connections": max_connections}
    return templates.render("clusters/server.yaml", CLUSTER, values)


def endpoints(name: str, servers: Iterable[ServerEndpoints]) -> Any:
    """Who answers for the cluster `name`: the ready replicas of all `servers`, behind them the waker."""
    members = sorted(servers, key=lambda server: server.server_uuid)
    ready = [{"endpoint": {"address": address(at)}} for server in members for at in server.ready]
    values = {"name": name, "ready": ready}
    return templates.render("clusters/endpoints.yaml", ENDPOINTS, values)


def inference_listener(settings: InferenceSettings) -> Any:
    """The inference listener; its routes come apart."""
    values = {
        **_listening(settings.addresses, settings.port),
        "stream_idle_timeout": f"{SILENCE_SECONDS}s",
        "request_timeout": f"{settings.request_seconds}s",
        **_HEADER_LIMITS,
        "needless_headers": header_names.all_but(header_names.PASSED),
        "replies": replies.inference(
            {
                **_HEADER_LIMITS,
                "max_body_bytes": settings.max_body_bytes,
                "silence": SILENCE_SECONDS,
                "budget_margin": BUDGET_MARGIN_SECONDS,
            }
        ),
        "admission_timeout": f"{settings.admission_timeout_seconds}s",
        "restart_retries": settings.restart_retries,
        "restart_backoff": _RESTART_BACKOFF,
        # Envoy takes the larger of this and the routes' limit for its own.
        "connection_buffer_bytes": min(1 << 20, settings.max_body_bytes),
        "bearer_tokens": _jwt_provider(settings.tokens, _ANY_BEARER, _TO_METADATA),
        "api_key_tokens": _jwt_provider(settings.tokens, _API_KEY, _TO_METADATA),
        "route_lua": route_lua(settings.limits),
        "answers_lua": answers_lua(),
        "cors": _cors_filter() if settings.allowed_origins else [],
    }
    return templates.render("listeners/inference.yaml", LISTENER, values)


def route_lua(changed: Mapping[str, int]) -> str:
    """The filter that decides about an inference request, with limits that differ from the table's."""
    return (
        limits_lua(changed)
        + templates.lua_modules("quotation", "json_body", "asked", "callers")
        + templates.lua("route")
    )


def answers_lua() -> str:
    """The filter on the way back: it reads what an answer used, and puts errors of the engine in shape."""
    table = templates.lua_value(
        {
            "entries": [
                {key: item[key] for key in item if key != "why"} for item in templates.raw("replies/engine.yaml")
            ],
            "types": ANTHROPIC_TYPES,
        }
    )
    modules = templates.lua_module("engine_errors_table", f"return {table}") + templates.lua_modules("engine_errors")
    return modules + templates.lua("answers")


def limits_lua(changed: Mapping[str, int]) -> str:
    """The modules that hold a body against the table of limits, with the table in them."""
    table = templates.lua_value({"limits": limits.changed(changed), "shapes": limits.shapes(), "paths": limits.paths()})
    return templates.lua_module("limits_table", f"return {table}") + templates.lua_modules(*_LIMITS_MODULES)


_LIMITS_MODULES = (
    "json_text",
    "word_length",
    "character_sets",
    "grammar_text",
    "grammar_branches",
    "grammar_recursion",
    "grammar_cost",
    "schema_text",
    "schema_cost",
    "media",
    "request_shapes",
    "request_refusal",
    "request_limits",
)


def held_listener(settings: InferenceSettings) -> Any:
    """The internal listener that requests without an engine pass on their way to the waker."""
    values = {
        "max_body_bytes": settings.max_body_bytes,
        "connection_buffer_bytes": min(1 << 20, settings.max_body_bytes),
        "empty_lua": templates.lua("empty"),
        "replies": replies.held({}),
        "restart_retries": settings.restart_retries,
        "restart_backoff": _RESTART_BACKOFF,
    }
    return templates.render("listeners/held.yaml", LISTENER, values)


def inference_routes(
    settings: InferenceSettings,
    clusters: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    asked: Told = NOTHING,
    idle: int = SILENCE_SECONDS,
    context: int = 0,
) -> Any:
    """The inference routes. `clusters` has the facts about those that are not as usual, `asked` what Admission is asked about; `idle`: how
    long any request may be without a byte in either direction; `context`: the largest number of tokens that a server takes as a prompt, 0
    if not known."""
    known: dict[str, Any] = {**callers.known(settings.allowed_origins, settings.allowed_hosts, settings.addresses)}
    if settings.allow_anonymous:
        known["anonymous"] = True
    known |= asked.route
    if context:
        known["most_prompt_bytes"] = context * limits.changed(settings.limits)["prompt.bytes_per_token"]
    values = {
        "max_body_bytes": settings.max_body_bytes,
        "stream_idle_timeout": f"{idle}s",
        "silence": f"{SILENCE_SECONDS}s",
        "inference_metadata": {"kind": "inference"} | known | {name: dict(facts) for name, facts in clusters.items()},
        "models_metadata": {"kind": "models"} | known,
        "digest": dict(asked.host),
        "per_filter": _cors_policy(settings.allowed_origins),
        "restart_retries": settings.restart_retries,
        "restart_backoff": _RESTART_BACKOFF,
        "restart_budget": f"{RESTART_BUDGET_SECONDS}s",
        "health_retries": min(_HEALTH_RETRIES, settings.restart_retries),
        "health_timeout": _HEALTH_TIMEOUT,
    }
    return templates.render("routes/inference.yaml", ROUTES, values)


def management_listener(settings: ManagementSettings) -> Any:
    """A management listener, routes included."""
    api = PublicApi(settings.descriptor_file, [service for service, _ in settings.services])
    clusters = dict(settings.services)
    routes = [
        _service_route(
            {"path": method.path},
            clusters[method.service],
            _HEALTH_RETRIES if method.name == "GetHealth" else settings.restart_retries,
            reads=method.reads,
            timeout=_HEALTH_TIMEOUT if method.name == "GetHealth" else "0s",
        )
        for method in api.methods
        if not method.internal
    ]
    routes += [_open_route(service, settings.restart_retries) for service in settings.open_services]
    values = {
        "name": settings.name,
        **_listening(settings.addresses, settings.port),
        "max_body_bytes": settings.max_body_bytes,
        "trusted_proxies": settings.trusted_proxies,
        "any_case": _jwt_provider(settings.tokens, _ANY_BEARER, _TO_HEADER),
        "usual": _jwt_provider(settings.tokens, _BEARER, _TO_HEADER),
        "jwt_rules": _jwt_rules(api, settings.open_services),
        "callers": callers.known(settings.allowed_origins, settings.allowed_hosts, settings.addresses)
        | callers.open_calls(api, [service.name for service in settings.open_services])
        | ({"pages only": True} if settings.any_host else {}),
        "without_token_lua": without_token_lua(),
        "strict_json_lua": strict_json_lua(api),
        "descriptors": base64.b64encode(settings.descriptor_file.read_bytes()).decode(),
        "services": [service for service, _ in settings.services],
        "per_filter": _cors_policy(settings.allowed_origins),
        "routes": [*routes, _NOWHERE],
        **_HEADER_LIMITS,
        "replies": replies.management({**_HEADER_LIMITS, "max_body_bytes": settings.max_body_bytes}),
    }
    return templates.render("listeners/management.yaml", LISTENER, values)


def strict_json_lua(api: PublicApi) -> str:
    """The filter that holds REST calls against their contracts."""
    known = {"RULES": api.body_rules(), "REMEDIES": {reason: _remedy(reason) for reason in _STRICT_REASONS}}
    head = "".join(f"local {name} = {templates.lua_value(value)}\n" for name, value in known.items())
    return head + templates.lua_modules("quotation", "json_body", "rpc_status") + templates.lua("strict_json")


_STRICT_REASONS = ("INVALID_FIELD", "NOT_IMPLEMENTED")


def without_token_lua() -> str:
    """The filter that decides under which host names calls need no token."""
    head = f"local REMEDY = {templates.lua_value(_remedy('HOST_NOT_ALLOWED'))}\n"
    return head + templates.lua_modules("quotation", "callers", "rpc_status") + templates.lua("without_token")


def _remedy(reason: str) -> str:
    return spec_of(Reason.Value(PREFIX + reason)).remedy


def _service_route(match: dict[str, str], cluster: str, retries: int, *, reads: bool, timeout: str = "0s") -> Any:
    values = {
        "match": match,
        "cluster": cluster,
        "timeout": timeout,
        "retry_on": "connect-failure,refused-stream,reset" if reads else "connect-failure,refused-stream",
        "retries": retries,
        "backoff": _RESTART_BACKOFF,
    }
    return templates.tree("routes/service.yaml", values)


def _open_route(service: OpenService, retries: int) -> Any:
    # They only read. Health is asked by those who want to know soon.
    route = _service_route(
        {"prefix": f"/{service.name}/"}, service.cluster, _HEALTH_RETRIES if service.asked_as else retries, reads=True
    )
    if service.asked_as:
        route["route"]["prefix_rewrite"] = f"/{service.asked_as}/"
    return route


# A route and not a direct response, because the CORS filter looks at routes only, and a REST call has this one until
# it is transcoded. Nothing sets the header.
_NOWHERE = {
    "match": {"prefix": "/"},
    "route": {"cluster_header": names.CLUSTER_HEADER, "cluster_not_found_response_code": "NOT_FOUND"},
}


def _jwt_rules(api: PublicApi, open_services: Iterable[OpenService]) -> list[dict[str, Any]]:
    """First rule that matches counts: the calls that need no token, each by its exact path, then everything else."""
    without: list[dict[str, Any]] = [{"prefix": f"/{service.name}/"} for service in open_services]
    for method in api.methods:
        if method.anonymous:
            without.append({"path": method.path})
            without += [
                {"path": path, "headers": [_verb_is(verb)]}
                for each in method.bindings
                # The transcoder reads over a slash at the end, and a HEAD is asked as a GET.
                for path in (each.path, f"{each.path}/")
                for verb in (("GET", "HEAD") if each.verb == "GET" else (each.verb,))
            ]
    return [{"match": match} for match in without] + [
        {"match": {"prefix": "/", "headers": [_SCHEME_IS_BEARER]}, "requires": {"provider_name": "any_case"}},
        {"match": {"prefix": "/"}, "requires": {"provider_name": "usual"}},
    ]


def _verb_is(verb: str) -> dict[str, Any]:
    return {"name": ":method", "string_match": {"exact": verb}}


def _listening(addresses: Sequence[str], port: int) -> dict[str, Any]:
    first, *more = ({"socket_address": {"address": each, "port_value": port}} for each in addresses)
    return {"address": first, "more_addresses": [{"address": each} for each in more]}


_BEARER = {"name": "authorization", "value_prefix": "Bearer "}
# Where the listener has looked at the scheme already, which may be written in any case.
_ANY_BEARER = {"name": "authorization", "value_prefix": " "}
_API_KEY = {"name": "x-api-key"}
_SCHEME_IS_BEARER = {"name": "authorization", "string_match": {"safe_regex": {"regex": "(?is)bearer .*"}}}
_TO_METADATA = {"payload_in_metadata": "claims"}
_TO_HEADER = {"forward_payload_header": names.CLAIMS_HEADER}


def _jwt_provider(tokens: TokenSettings, header: dict[str, str], forward: dict[str, str]) -> dict[str, Any]:
    return {
        "issuer": tokens.issuer,
        "audiences": [tokens.audience],
        "local_jwks": {"inline_string": tokens.jwks},
        "from_headers": [header],
        "forward": False,
        "require_expiration": True,
        "clock_skew_seconds": tokens.clock_skew_seconds,
        "jwt_cache_config": {"jwt_cache_size": 1000},
        **forward,
    }


def _cors_filter() -> list[dict[str, Any]]:
    return [
        {
            "name": "envoy.filters.http.cors",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"},
        }
    ]


def _cors_policy(origins: frozenset[str]) -> dict[str, Any]:
    if not origins:
        return {}
    return {
        "envoy.filters.http.cors": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
            "allow_origin_string_match": [
                {"safe_regex": {"regex": expression(origin)}} if is_pattern(origin) else {"exact": origin}
                for origin in sorted(origins)
            ],
            "allow_methods": "GET, POST, PATCH, DELETE",
            "allow_headers": "*",
            "expose_headers": "grpc-status, grpc-message, grpc-status-details-bin, x-request-id, retry-after",
            "max_age": "600",
        }
    }
