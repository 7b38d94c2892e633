"""The addresses that Envoy listens on. Imports the standard library only, because the command uses it."""

from __future__ import annotations

import socket
from ipaddress import ip_address

LOCALHOST = "localhost"
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def read_bind(text: str) -> str:
    """Read the setting LLAMESH_BIND; ValueError with the remedy if Envoy could not listen on it."""
    if text != LOCALHOST:
        try:
            ip_address(text.strip("[]"))
        except ValueError:
            raise ValueError(
                f"{text!r} is not an IP address of this machine: write for instance 127.0.0.1, 0.0.0.0 or {LOCALHOST}"
            ) from None
    return text


def host_and_port(address: str) -> tuple[str, int]:
    """Read host:port, or [address]:port of IPv6."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_ip_address(host: str) -> bool:
    """Whether a host is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def listening_addresses(bind: str) -> tuple[str, ...]:
    """Return the addresses for the setting LLAMESH_BIND. `localhost` means 127.0.0.1 and ::1, as far as this machine has them, because
    programs try either."""
    if bind != LOCALHOST:
        return (bind.strip("[]"),)
    # If neither can be bound now, the network may not be up yet: use the first, so that Envoy names it in its error.
    return tuple(address for family, address in _LOOPBACK if _exists(family, address)) or (_LOOPBACK[0][1],)


def _exists(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
