"""Parts of the inference listener and of the management listeners: addresses, limits on headers, CORS."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from llamesh.kit.origins import expression, is_pattern

HEADER_LIMITS = {"max_headers_kib": 60, "max_headers_count": 100}
"""Limits on a client's headers, Envoy's defaults. Engines accept 8 KB for each header and receive only a few: see header_names."""


def listening(addresses: Sequence[str], port: int) -> dict[str, Any]:
    """Return the template values for a listener on all `addresses`."""
    first, *more = ({"socket_address": {"address": each, "port_value": port}} for each in addresses)
    return {"address": first, "more_addresses": [{"address": each} for each in more]}


def cors_filter() -> list[dict[str, Any]]:
    """Return the CORS filter, as a list to put into a list of filters."""
    return [
        {
            "name": "envoy.filters.http.cors",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"},
        }
    ]


def cors_policy(origins: Collection[str]) -> dict[str, Any]:
    """Return the configuration of the CORS filter for a virtual host; empty if no origin is allowed."""
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
