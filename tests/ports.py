"""Ports for what tests start, of this machine's loopback interface.

Two runs side by side, or two workers of one run, seldom get the same port: each process begins at a place of its own. No port is one
that the system gives to outgoing connections, which could take it before the program under test does.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator

FIRST, LAST = 12_000, 31_999
"""Above the ports that llamesh uses by default, below those of outgoing connections (from 32768 on Linux)."""
_APART = 211
"""Between the first ports of two processes that start one after the other: more than a module of tests needs at once."""


def _candidates() -> Iterator[int]:
    span = LAST - FIRST + 1
    return (FIRST + (os.getpid() * _APART + number) % span for number in itertools.count())


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
