"""Which hosts and addresses a download may reach: the guard against requests that turn inwards (SSRF).

A host is resolved once, every address it has is judged, and the connection goes to those very addresses: a name that
answers differently the second time changes nothing. Only addresses of the public internet pass, unless the operator
named the host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llamesh.kit.logs import log
from services.download.sources.source import SourceError, SourceRefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to the textual addresses of the host."""

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")


def is_public(address: Address) -> bool:
    """Whether the address is one of the public internet, in whatever form it hides an IPv4 address."""
    inner = _embedded(address)
    if inner is not None:
        return is_public(inner)
    site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
    return address.is_global and not (address.is_multicast or address.is_reserved or site_local)


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or address in _IPV4_COMPATIBLE:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host as the system resolves them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class AddressRules:
    """Hosts that may be reached although their address is private, by exact name, and how names are resolved."""

    private_hosts: frozenset[str] = frozenset()
    resolve: Resolve = resolve

    async def addresses(self, host: str, port: int, *, trusted: bool = False) -> list[str]:
        """Addresses to connect to. Raises SourceRefusedError when one of them may not be reached, SourceError for none."""
        try:
            found = await self.resolve(host, port)
        except OSError as error:
            raise SourceError(f"the host {host} cannot be found") from error
        if not found:
            raise SourceError(f"the host {host} has no address")
        if trusted or host in self.private_hosts:
            return list(found)
        for text in found:
            # A scope (fe80::1%eth0) only exists on link-local addresses.
            if "%" in text or not is_public(ipaddress.ip_address(text)):
                # What a name of the inside resolves to is not the caller's to know.
                log.info("source refused", host=host, address=text)
                raise SourceRefusedError(
                    f"the host {host} has an address that is not one of the public internet: an administrator allows it with"
                    " LLAMESH_SOURCE_HOSTS",
                    rule="address",
                )
        return list(found)
