"""Decodes the parts that an authorization check and an access log entry of Envoy have in common: the token's claims and the target."""

from __future__ import annotations

from typing import Any

from llamesh.kit.identity import Identity
from llamesh.names import CLAIMS_METADATA, CLUSTER_HEADER, model_of, server_of


def envoy_of(peer: str) -> str:
    """Return which Envoy a call comes from: its address without the port of the connection. On this machine's Unix socket there is one."""
    return peer.rpartition(":")[0] if peer.startswith("ipv") else ""


def claims_of(metadata: Any) -> Any:
    """Return the claims of the verified token; empty for an anonymous request."""
    if CLAIMS_METADATA not in metadata.filter_metadata:
        return {}
    fields = metadata.filter_metadata[CLAIMS_METADATA].fields
    return fields["claims"].struct_value.fields if "claims" in fields else {}


def text_of(claims: Any, name: str) -> str:
    """Return a claim that is a text; empty if the token has no claim of this name."""
    return str(claims[name].string_value) if name in claims else ""


def identity_of(claims: Any) -> Identity:
    """Return the caller that the claims describe."""
    scopes = claims["scopes"].list_value.values if "scopes" in claims else ()
    return Identity(
        subject=text_of(claims, "sub"),
        scopes=frozenset(scope.string_value for scope in scopes),
        contract_id=text_of(claims, "contract"),
        token_id=text_of(claims, "jti"),
        uid=text_of(claims, "uid"),
        issued=claims["iat"].number_value if "iat" in claims else 0.0,
        standing=int(claims["standing"].number_value) if "standing" in claims else 0,
    )


def permit_id_of(claims: Any, request_id: str) -> str:
    """Return the id of the permit of a request. Envoy makes the request id; the token's id keeps permits of different tokens apart."""
    return f"{text_of(claims, 'jti')} {request_id}"


def target_of(headers: Any) -> str:
    """Return the requested model name, or the server id if the path has one. Empty for a list of models."""
    cluster = str(headers.get(CLUSTER_HEADER, ""))
    return model_of(cluster) or server_of(cluster) or ""
