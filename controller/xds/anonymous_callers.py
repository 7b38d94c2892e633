"""Metadata for the Lua filters that decide about callers without a token: envoy/lua/callers.lua and without_token.lua.

Invariant: the inference listener and the management listeners get the same origins and host names.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from controller.xds.public_api import PublicApi

MAX_BODY_BYTES = 16384
"""Maximum bytes of the body of a call without a token, which Envoy may hold for anybody. A login needs a quarter of that even if all
its characters are escaped."""


def known(origins: Iterable[str], hosts: Iterable[str], addresses: Iterable[str]) -> dict[str, bool]:
    """Return the callers that need no token: web pages of these origins, and all callers under one of these host names. If the mesh listens
    on more than the loopback interface (`addresses`), also all callers under an IP address."""
    metadata = {f"origin {origin}": True for origin in origins} | {f"host {host}": True for host in hosts}
    return metadata | {"any address": True} if any(not _is_loopback(each) for each in addresses) else metadata


def open_calls(api: PublicApi, open_services: Iterable[str]) -> dict[str, bool]:
    """Return the calls that need neither a token nor a known host name, because they only read: for load balancers and token verifiers."""
    metadata = {f"open /{service}/": True for service in open_services}
    for method in api.methods:
        if method.anonymous and method.is_read_only:
            metadata |= {f"open {path}": True for path in (method.path, *(each.path for each in method.bindings))}
    return metadata


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:  # Envoy refuses such an address
        return False
