"""Whether an engine is busy: one definition for idle sleep, drain and roll-out in the controller, and for the engine's own drain.

Invariant: an engine is busy if llama.cpp processes or queues a request, or if a client has a connection to it. Connections count because
llama.cpp does not count a request that it still parses and tokenizes. Envoy opens one connection for each request.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamesh import listeners

MIN_READ_INTERVAL = 0.05
"""Minimum number of seconds between two reads of the kernel's table, which has a row for every Unix socket of the machine."""
METRICS_PATH = "/metrics"
"""Path of llama.cpp's counters. The inference loop answers it, while HTTP threads answer /health by themselves."""
_COUNTER = re.compile(rb"^llamacpp:(\w+) (\S+)$", re.MULTILINE)
_WORK = (b"prompt_tokens_total", b"tokens_predicted_total", b"n_decode_total")


@dataclass(frozen=True, slots=True)
class Counters:
    """Counters of llama.cpp."""

    requests: int
    """Requests that are processed, or that wait for a slot."""
    work: float
    """Increases with every batch and every token. Compare it only with earlier values of the same process."""
    prompt_rate: float | None
    """Prompt tokens per second since the process started; None before the first prompt."""

    @classmethod
    def read(cls, body: bytes) -> Counters:
        """Read the text of /metrics; ValueError if a counter is not a number."""
        found = {name: float(value) for name, value in _COUNTER.findall(body)}
        tokens, seconds = found.get(b"prompt_tokens_total", 0.0), found.get(b"prompt_seconds_total", 0.0)
        return cls(
            requests=int(found.get(b"requests_processing", 0) + found.get(b"requests_deferred", 0)),
            work=sum(found.get(name, 0.0) for name in _WORK),
            prompt_rate=tokens / seconds if tokens > 0 and seconds > 0 else None,
        )


def is_busy(requests: int, connections: int | None) -> bool:
    """Whether an engine is busy. `requests` are counted by llama.cpp, `connections` are those of clients; None if unknown."""
    return requests > 0 or bool(connections)


def client_connections(socket: Path, pid: int) -> int | None:
    """Count the open connections of process `pid` on its Unix socket, those that are closing included.

    The caller's own connections count, so it closes them first. `socket` is the path that clients connected to, even if the path has been
    removed: the kernel's table keeps it. Returns None without /proc.
    """
    return _of_process(listeners.connections(), socket, pid)


class ConnectionTable:
    """`client_connections` for many engines: calls at about the same time share one read of the kernel's table.

    Invariant: each call gets a table that was read after the call began. `clock` is monotonic.
    """

    def __init__(
        self,
        read: Callable[[], Mapping[str, set[str]] | None] = listeners.connections,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._read_at = float("-inf")
        self._next: asyncio.Task[Mapping[str, set[str]] | None] | None = None

    async def clients(self, socket: Path, pid: int) -> int | None:
        """See `client_connections`."""
        if self._next is None:
            self._next = asyncio.create_task(self._reading())
        # Shielded: a caller that is cancelled must not cancel the read for the others.
        return _of_process(await asyncio.shield(self._next), socket, pid)

    async def _reading(self) -> Mapping[str, set[str]] | None:
        await asyncio.sleep(max(0.0, self._read_at + MIN_READ_INTERVAL - self._clock()))
        self._next, self._read_at = None, self._clock()
        return self._read()


def _of_process(connections: Mapping[str, set[str]] | None, socket: Path, pid: int) -> int | None:
    if connections is None:
        return None
    accepted = connections.get(str(socket))
    return len(accepted & listeners.open_sockets(pid).keys()) if accepted else 0
