"""Host names and addresses of machines, as certificates have them.

Invariant: a name that clients would never match is refused, and named, before a certificate holds it.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from llamesh.certificates import CertificateError

MAX_NAME = 253
"""Characters of a host name (RFC 1035)."""
_PART = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
"""A part of a host name (RFC 1123), with the underscore that services of Compose have and clients accept."""
_BROADCAST = IPv4Address("255.255.255.255")
_WITHOUT_ASTERISK = "write *.example.com, or each name"


@dataclass(frozen=True, slots=True)
class _Problem:
    """Why no certificate may hold a name."""

    words: str
    remedy: str = "write a name such as llm.example.com, or an address such as 192.0.2.7"


def normal(name: str) -> str:
    """Return an address in its shortest form, a host name in lower case and in ASCII (IDNA). CertificateError if it is neither."""
    bare = name.strip().lower().removesuffix(".")
    try:
        address = ip_address(bare[1:-1] if bare[:1] + bare[-1:] == "[]" else bare)
    except ValueError:
        host, problem = _host(bare)
    else:
        host, problem = str(address), _address_problem(address)
    if problem:
        words = f"{name!r} is no host name or address for a certificate: {problem.words}"
        raise CertificateError(words, problem.remedy)
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


def _host(name: str) -> tuple[str, _Problem | None]:
    """Return a host name in ASCII, and why no certificate may hold it."""
    try:
        host = name if name.isascii() else name.encode("idna").decode()
    except ValueError:
        return "", _Problem("it cannot be written in ASCII (IDNA)")
    return host, _host_problem(host)


def _host_problem(host: str) -> _Problem | None:
    if any(mark in host for mark in "/@:"):
        return _Problem("it has a scheme, user, port or path")
    parts = host.removeprefix("*.").split(".")
    if len(host) > MAX_NAME or any(len(part) > 63 for part in parts):
        return _Problem(f"it is too long: at most {MAX_NAME} characters, and 63 between two dots")
    if "*" in host.removeprefix("*."):
        return _Problem("an asterisk stands for the whole first part only", _WITHOUT_ASTERISK)
    if not all(_PART.fullmatch(part) for part in parts):
        return _Problem("its parts have letters, digits and hyphens, and begin and end without a hyphen")
    if parts[-1].isdigit():
        return _Problem("its end is that of an address, and it is no address")
    if host.startswith("*.") and len(parts) < 2:
        return _Problem("clients accept an asterisk only before two parts or more", _WITHOUT_ASTERISK)
    return None


def _address_problem(address: IPv4Address | IPv6Address) -> _Problem | None:
    if address.is_unspecified or address.is_multicast or address == _BROADCAST:
        return _Problem("no single machine has this address")
    if isinstance(address, IPv6Address) and address.scope_id:
        return _Problem("it has a zone, which only this machine knows")
    return None
