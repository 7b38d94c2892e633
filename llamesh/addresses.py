"""The addresses that Envoy listens on. Nothing but the standard library is imported: the command asks too."""

from __future__ import annotations

import socket

LOCALHOST = "localhost"
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def listening_addresses(bind: str) -> tuple[str, ...]:
    """The addresses of the setting LLAMESH_BIND. `localhost` is both of the loopback interface, as far as this machine has them: programs
    try either for that name. An address is itself."""
    if bind != LOCALHOST:
        return (bind.strip("[]"),)
    # A machine that shows none has them all the same once its network is up; the first is what Envoy then complains about.
    return tuple(address for family, address in _LOOPBACK if _exists(family, address)) or (_LOOPBACK[0][1],)


def _exists(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
