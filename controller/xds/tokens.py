"""Envoy's rules for verifying the mesh's tokens: the JWT providers of both kinds of listeners.

Invariant: the algorithm is that of the key; the algorithm in a token is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamesh import names

BEARER = {"name": "authorization", "value_prefix": "Bearer "}
ANY_BEARER = {"name": "authorization", "value_prefix": " "}
"""For rules that have already matched the scheme, which may have any case."""
API_KEY = {"name": "x-api-key"}
SCHEME_IS_BEARER = {"name": "authorization", "string_match": {"safe_regex": {"regex": "(?is)bearer .*"}}}
"""A header matcher: the scheme is Bearer in any case."""

TO_METADATA = {"payload_in_metadata": "claims"}
"""The payload goes into the request's metadata, for Envoy's own filters."""
TO_HEADER = {"forward_payload_header": names.CLAIMS_HEADER}
"""The payload goes into a header, for the services."""


@dataclass(frozen=True)
class TokenSettings:
    """Settings for verifying the mesh's tokens."""

    jwks: str
    """The public keys as a JSON Web Key Set; for HS256 an `oct` key. Every key names its `alg`."""
    issuer: str = names.ISSUER
    audience: str = names.AUDIENCE
    clock_skew_seconds: int = 2
    """Seconds after its expiry for which a token is still valid. Never 0, which Envoy reads as 60."""


def jwt_provider(tokens: TokenSettings, header: Mapping[str, str], forward: Mapping[str, str]) -> dict[str, Any]:
    """Return the provider that reads a token from `header` and forwards its payload as `forward` says."""
    return {
        "issuer": tokens.issuer,
        "audiences": [tokens.audience],
        "local_jwks": {"inline_string": tokens.jwks},
        "from_headers": [dict(header)],
        "forward": False,
        "require_expiration": True,
        "clock_skew_seconds": tokens.clock_skew_seconds,
        "jwt_cache_config": {"jwt_cache_size": 1000},
        **forward,
    }
