"""The inference listener, its routes, and the internal listener on the way to the waker, as Envoy messages.

Invariant: the same values give the same bytes. Nothing here does I/O beyond reading the templates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from controller.xds import anonymous_callers, header_names, replies, scripts, templates, tls
from controller.xds.clusters import BUDGET_MARGIN_SECONDS, SILENCE_SECONDS
from controller.xds.digest import NOTHING, DigestMetadata
from controller.xds.listeners import HEADER_LIMITS, cors_filter, cors_policy, listening
from controller.xds.restarts import (
    HEALTH_TIMEOUT,
    MAX_HEALTH_RETRIES,
    MAX_RESTART_RETRIES,
    RESTART_BACKOFF,
    RESTART_BUDGET_SECONDS,
)
from controller.xds.tokens import ANY_BEARER, API_KEY, TO_METADATA, TokenSettings, jwt_provider
from llamesh.kit import limits

LISTENER = "envoy.config.listener.v3.Listener"
ROUTES = "envoy.config.route.v3.RouteConfiguration"


@dataclass(frozen=True)
class InferenceSettings:
    """The inference listener."""

    addresses: Sequence[str]
    port: int
    tokens: TokenSettings
    allow_anonymous: bool
    """Whether requests without a token are served, provided that the rules on origin and host allow them."""
    allowed_origins: frozenset[str] = frozenset()
    """Origins of web pages that may call, as browsers write them (`http://localhost:5173`) or as patterns (llamesh.kit.origins)."""
    allowed_hosts: frozenset[str] = frozenset()
    """Host names (no port) under which anonymous requests are answered, in addition to those of the loopback interface."""
    secret_file: Path | None = None
    """File with the certificate that Envoy presents (llamesh.certificates); None: no TLS."""
    certificate_names: frozenset[str] = frozenset()
    """Names and addresses that the certificate is valid for."""
    max_body_bytes: int = 16 << 20
    """Largest request body; it is kept in memory until an engine has answered."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Limits of a request that differ from the table's defaults (llamesh.kit.limits)."""
    request_seconds: int = 600
    """Seconds that a client may take to send its request."""
    admission_timeout_seconds: int = RESTART_BUDGET_SECONDS
    """Seconds that Admission may take to answer, including a restart of the contract service."""
    restart_retries: int = MAX_RESTART_RETRIES
    """Maximum number of retries at a member that does not listen."""


def inference_listener(settings: InferenceSettings) -> Any:
    """Return the inference listener; its routes are a separate resource."""
    values = {
        **listening(settings.addresses, settings.port),
        "stream_idle_timeout": f"{SILENCE_SECONDS}s",
        "request_timeout": f"{settings.request_seconds}s",
        **HEADER_LIMITS,
        "needless_headers": header_names.all_but(header_names.PASSED),
        "replies": replies.inference(
            {
                **HEADER_LIMITS,
                "max_body_bytes": settings.max_body_bytes,
                "silence": SILENCE_SECONDS,
                "budget_margin": BUDGET_MARGIN_SECONDS,
            }
        ),
        "admission_timeout": f"{settings.admission_timeout_seconds}s",
        "restart_retries": settings.restart_retries,
        "restart_backoff": RESTART_BACKOFF,
        "connection_buffer_bytes": _connection_buffer_bytes(settings),
        "bearer_tokens": jwt_provider(settings.tokens, ANY_BEARER, TO_METADATA),
        "api_key_tokens": jwt_provider(settings.tokens, API_KEY, TO_METADATA),
        "route_lua": scripts.route(settings.limits),
        "answers_lua": scripts.answers(),
        "cors": cors_filter() if settings.allowed_origins else [],
    }
    hosts = (*settings.allowed_hosts, *settings.addresses, *settings.certificate_names)
    return tls.put_before(templates.render("listeners/inference.yaml", LISTENER, values), settings.secret_file, hosts)


def held_listener(settings: InferenceSettings) -> Any:
    """Return the internal listener through which a request goes to the waker while no engine is ready."""
    values = {
        "max_body_bytes": settings.max_body_bytes,
        "connection_buffer_bytes": _connection_buffer_bytes(settings),
        "empty_lua": scripts.empty(),
        "replies": replies.held({}),
        "restart_retries": settings.restart_retries,
        "restart_backoff": RESTART_BACKOFF,
    }
    return templates.render("listeners/held.yaml", LISTENER, values)


def inference_routes(
    settings: InferenceSettings,
    clusters: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    digest: DigestMetadata = NOTHING,
    idle: int = SILENCE_SECONDS,
    context: int = 0,
) -> Any:
    """Return the inference routes.

    Args:
        settings: the settings of the listener.
        clusters: facts about each cluster that differs from the defaults (clusters.cluster_facts).
        digest: the digest of the tokens that Envoy asks Admission about.
        idle: seconds for which a request may have no byte in either direction.
        context: the largest number of tokens that a server accepts as a prompt; 0: unknown.
    """
    known: dict[str, Any] = {
        **anonymous_callers.known(settings.allowed_origins, settings.allowed_hosts, settings.addresses)
    }
    if settings.allow_anonymous:
        known["anonymous"] = True
    known |= digest.route
    if context:
        known["most_prompt_bytes"] = context * limits.changed(settings.limits)["prompt.bytes_per_token"]
    values = {
        "max_body_bytes": settings.max_body_bytes,
        "stream_idle_timeout": f"{idle}s",
        "silence": f"{SILENCE_SECONDS}s",
        "inference_metadata": {"kind": "inference"} | known | {name: dict(facts) for name, facts in clusters.items()},
        "models_metadata": {"kind": "models"} | known,
        "digest": dict(digest.host),
        "per_filter": cors_policy(settings.allowed_origins),
        "restart_retries": settings.restart_retries,
        "restart_backoff": RESTART_BACKOFF,
        "restart_budget": f"{RESTART_BUDGET_SECONDS}s",
        "health_retries": min(MAX_HEALTH_RETRIES, settings.restart_retries),
        "health_timeout": HEALTH_TIMEOUT,
    }
    return templates.render("routes/inference.yaml", ROUTES, values)


def _connection_buffer_bytes(settings: InferenceSettings) -> int:
    """The buffer of a connection. Envoy uses the larger of this and the routes' limit for a body."""
    return min(1 << 20, settings.max_body_bytes)
