"""Host names and addresses of machines, as certificates have them.

Invariant: a name that clients would never match is refused, and named, before a certificate holds it.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from llamesh.certificates import CertificateError

MAX_NAME = 253
"""Characters of a host name (RFC 1035)."""
_PART = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
"""A part of a host name (RFC 1123), with the underscore that services of Compose have and clients accept."""
_BROADCAST = IPv4Address("255.255.255.255")


def normal(name: str) -> str:
    """Return an address in its shortest form, a host name in lower case and in ASCII (IDNA). CertificateError if it is neither."""
    bare = name.strip().lower().removesuffix(".")
    try:
        address = ip_address(bare[1:-1] if bare[:1] + bare[-1:] == "[]" else bare)
    except ValueError:
        host, wrong = _host(bare)
    else:
        host, wrong = str(address), _wrong_address(address)
    if wrong:
        raise CertificateError(f"{name!r} is no host name or address for a certificate: {wrong}", _remedy(wrong))
    return host


def is_usable(name: str) -> bool:
    """Whether a certificate may hold a name."""
    with suppress(CertificateError):
        return bool(normal(name))
    return False


def names_of_this_machine() -> list[str]:
    """Names and addresses of this machine. Those that no certificate may hold are left out."""
    host = socket.gethostname().lower()
    found = ["localhost", "127.0.0.1", "::1", host]
    if host and "." not in host:
        found.append(f"{host}.local")
    with suppress(OSError):
        found += [str(item[4][0]).partition("%")[0] for item in socket.getaddrinfo(host, None)]
    found += outward_addresses()
    return list(dict.fromkeys(name for name in found if is_usable(name)))


def outward_addresses() -> list[str]:
    """The source addresses that this machine uses for other networks. Nothing is sent."""
    found = []
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.append(str(probe.getsockname()[0]))
    return found


def _host(name: str) -> tuple[str, str]:
    """Return a host name in ASCII, and what is wrong with it."""
    try:
        host = name if name.isascii() else name.encode("idna").decode()
    except ValueError:
        return "", "it cannot be written in ASCII (IDNA)"
    return host, _wrong_host(host)


def _wrong_host(host: str) -> str:
    if any(mark in host for mark in "/@:"):
        return "it has a scheme, user, port or path"
    parts = host.removeprefix("*.").split(".")
    if len(host) > MAX_NAME or any(len(part) > 63 for part in parts):
        return f"it is too long: at most {MAX_NAME} characters, and 63 between two dots"
    if "*" in host.removeprefix("*."):
        return "an asterisk stands for the whole first part only"
    if not all(_PART.fullmatch(part) for part in parts):
        return "its parts have letters, digits and hyphens, and begin and end without a hyphen"
    if parts[-1].isdigit():
        return "its end is that of an address, and it is no address"
    if host.startswith("*.") and len(parts) < 2:
        return "clients accept an asterisk only before two parts or more"
    return ""


def _wrong_address(address: IPv4Address | IPv6Address) -> str:
    if address.is_unspecified or address.is_multicast or address == _BROADCAST:
        return "no single machine has this address"
    if isinstance(address, IPv6Address) and address.scope_id:
        return "it has a zone, which only this machine knows"
    return ""


def _remedy(wrong: str) -> str:
    if "asterisk" in wrong:
        return "write *.example.com, or each name"
    return "write a name such as llm.example.com, or an address such as 192.0.2.7"
