"""Rules for the hosts and addresses that a download may connect to: the guard against server-side request forgery (SSRF).

Invariant: a host is resolved once, all its addresses are checked, and the connection uses exactly those addresses, so DNS rebinding has no
effect. Only public addresses are allowed, unless the operator named the host.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from llamesh.kit.logs import log
from llamesh.model_addresses import names_user
from services.download.sources.source import SHORTAGES, SourceError, SourceRefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host and port as texts."""

NO_NETWORK = "no name server answers this machine, which may have no network"
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_IPV4_COMPATIBLE = ipaddress.IPv6Network("::/96")


def is_public(address: Address) -> bool:
    """Return whether an address is public; an IPv4 address inside an IPv6 address is checked too."""
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


def refuse_user(source: str) -> None:
    """Raise SourceRefusedError if an address names a user, whatever its scheme is. The message quotes nothing of the address."""
    if names_user(source):
        raise SourceRefusedError("an address with a user name or password would be recorded", rule="credentials")


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host from the system's resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class AddressRules:
    """The hosts, by exact name, whose addresses may be private, and the resolver. `remedy` ends the message of a refusal."""

    private_hosts: frozenset[str] = frozenset()
    resolve: Resolve = resolve
    remedy: str = "an administrator allows it with LLAMESH_SOURCE_HOSTS"

    def of_redirects(self) -> AddressRules:
        """Return the rules for redirects of a server that a caller named: no redirect may lead to a private host."""
        return AddressRules(resolve=self.resolve, remedy="a redirect does not lead to it; name its own address")

    def allowing(self, host: str) -> AddressRules:
        """Return these rules, extended by a host that the operator named in another setting."""
        return AddressRules(self.private_hosts | {host}, self.resolve)

    async def addresses(self, host: str, port: int, *, trusted: bool = False) -> list[str]:
        """Return the addresses to connect to. Raises SourceRefusedError if one is not allowed, SourceError if there is none."""
        try:
            found = await self.resolve(host, port)
        except (OSError, ValueError) as error:
            if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
                raise SourceError(f"{NO_NETWORK}, so the host {host} cannot be found", unreachable=True) from error
            if isinstance(error, OSError) and error.errno in SHORTAGES:
                words = f"the host {host} cannot be looked up: {error.strerror}"
                raise SourceError(words, transient=True) from error
            # ValueError: the name has no form that DNS can express, such as a label of more than 63 characters.
            raise SourceError(f"the host {host} cannot be found", unreachable=isinstance(error, OSError)) from error
        if not found:
            raise SourceError(f"the host {host} has no address")
        if trusted or host in self.private_hosts:
            return list(found)
        for text in found:
            # A scope (fe80::1%eth0) only exists on link-local addresses.
            if "%" in text or not is_public(ipaddress.ip_address(text)):
                # The address goes to the log only: callers must not learn the addresses of internal names.
                log.info("source refused", host=host, address=text)
                raise SourceRefusedError(
                    f"the host {host} has an address that is not one of the public internet: {self.remedy}",
                    rule="address",
                )
        return list(found)
