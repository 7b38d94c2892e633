"""Whether other machines reach the mesh. Envoy on loopback is not enough to tell: a proxy on this machine may stand before it.

Invariant: each setting that only makes sense if others reach the mesh counts, so a default password never meets them.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from llamesh.addresses import LOCALHOST

if TYPE_CHECKING:
    from llamesh.kit.config import Settings


def is_loopback(host: str) -> bool:
    """Whether an address, or the name localhost, is of the loopback interface."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == LOCALHOST


def reached_by_others(settings: Settings) -> str:
    """The setting, as people write it, that says that other machines reach the mesh; empty if none does."""
    if not settings.loopback:
        return f"LLAMESH_BIND={settings.bind}"
    if settings.trusted_proxies:
        return f"LLAMESH_TRUSTED_PROXIES={settings.trusted_proxies}"
    if settings.allowed_hosts:
        return f"LLAMESH_ALLOWED_HOSTS={','.join(settings.allowed_hosts)}"
    return "" if is_loopback(settings.public_host) else f"LLAMESH_PUBLIC_HOST={settings.public_host}"
