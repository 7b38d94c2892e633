"""Ports for what tests start, of this machine's loopback interface.

Invariant: two processes that run tests never get the same port, whether they are workers of one run or runs side by side, also if a port is
bound long after it was given out, or is free again while its program restarts. Each process reserves blocks of ports. No port is one that
the system gives to outgoing connections, which could take it before the program under test does.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

FIRST, LAST = 12_000, 31_999
"""Above the ports that llamesh uses by default, below those of outgoing connections (from 32768 on Linux)."""
_BLOCK = 200
"""Ports of a block: more than a module of tests needs at once."""
_BLOCKS = (LAST - FIRST + 1) // _BLOCK

_reservations: dict[int, int] = {}
"""The descriptor of a UDP socket at the first number of each block of this process. The system closes it when the process ends, however it
ends; a socket object would warn at the end of the interpreter that nobody has closed it."""


def _candidates() -> Iterator[int]:
    while True:
        # If no block is left: those of this process again.
        for first in [found] if (found := _reserve()) else list(_reservations):
            yield from range(first, first + _BLOCK)


def _reserve() -> int:
    """Reserve a block that no process has, and return its first port; 0 if there is none."""
    for number in range(_BLOCKS):
        first = FIRST + (os.getpid() + number) % _BLOCKS * _BLOCK
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", first))
        except OSError:
            reservation.close()
            continue
        _reservations[first] = reservation.detach()
        return first
    return 0


_next = _candidates()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now, each given out once by this process."""
    return [_free_port() for _ in range(count)]


def _free_port() -> int:
    for port in itertools.islice(_next, LAST - FIRST):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
    raise RuntimeError(f"no port from {FIRST} to {LAST} is free")
