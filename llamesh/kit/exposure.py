"""Detects whether other machines reach the mesh. Even if Envoy listens on loopback only, a proxy on this machine may expose it.

Invariant: every setting that is useful only if others reach the mesh counts as exposure, so the default password is never exposed.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from llamesh.addresses import LOCALHOST

if TYPE_CHECKING:
    from llamesh.kit.config import Settings


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address or the name localhost."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == LOCALHOST


def exposing_setting(settings: Settings) -> str:
    """Return the setting, as NAME=value, that shows that other machines reach the mesh; empty if there is none."""
    if not settings.loopback:
        return f"LLAMESH_BIND={settings.bind}"
    if settings.trusted_proxies:
        return f"LLAMESH_TRUSTED_PROXIES={settings.trusted_proxies}"
    if settings.allowed_hosts:
        return f"LLAMESH_ALLOWED_HOSTS={','.join(settings.allowed_hosts)}"
    return "" if is_loopback(settings.public_host) else f"LLAMESH_PUBLIC_HOST={settings.public_host}"
