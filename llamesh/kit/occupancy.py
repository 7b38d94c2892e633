"""Whether an engine is busy: the one definition that sleep, drain and roll-out share with the engine's own drain.

Invariant: an engine is busy if llama.cpp works on a request or has one waiting, or if a client holds a connection to it. The
connections count because llama.cpp does not count a request that it still parses and tokenizes; Envoy holds one connection a request.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from llamesh import listeners

SHARED_SECONDS = 0.05
"""The kernel's table is read at most so often for all who ask: it has a row for every Unix socket of the machine."""
METRICS_PATH = "/metrics"
"""Where llama.cpp counts. It is answered by the inference loop, unlike /health, which HTTP threads answer by themselves."""
_COUNTER = re.compile(rb"^llamacpp:(\w+) (\S+)$", re.MULTILINE)
_WORK = (b"prompt_tokens_total", b"tokens_predicted_total", b"n_decode_total")


@dataclass(frozen=True, slots=True)
class Counters:
    """What llama.cpp counts, as far as it matters here."""

    requests: int
    """Requests that it works on, or that wait for a slot."""
    work: float
    """Grows with every batch and every token; comparable only with an earlier value of the same process."""
    prompt_rate: float | None
    """Tokens of prompt a second, over its life so far; None before the first prompt."""

    @classmethod
    def read(cls, body: bytes) -> Counters:
        """Read the text of /metrics. ValueError if a counter is no number."""
        found = {name: float(value) for name, value in _COUNTER.findall(body)}
        tokens, seconds = found.get(b"prompt_tokens_total", 0.0), found.get(b"prompt_seconds_total", 0.0)
        return cls(
            requests=int(found.get(b"requests_processing", 0) + found.get(b"requests_deferred", 0)),
            work=sum(found.get(name, 0.0) for name in _WORK),
            prompt_rate=tokens / seconds if tokens > 0 and seconds > 0 else None,
        )


def is_busy(requests: int, connections: int | None) -> bool:
    """The definition. `requests`: as llama.cpp counts; `connections`: of clients, None if the system does not say."""
    return requests > 0 or bool(connections)


def client_connections(socket: Path, pid: int) -> int | None:
    """Connections that process `pid` has open on its Unix socket, those whose last bytes are on their way included.

    The caller's own ones count too, so it closes them first. `socket` is the path that clients used, even if it is gone by now: the
    kernel's table goes by it. None if the system does not say (no /proc).
    """
    return _of_process(listeners.connections(), socket, pid)


class ConnectionTable:
    """`client_connections` for one who asks about many engines: questions of about the same moment share one reading of the kernel's table.

    Invariant: an answer is from after its question. `clock` is monotonic.
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
        # Whoever gives up does not take the reading from the others.
        return _of_process(await asyncio.shield(self._next), socket, pid)

    async def _reading(self) -> Mapping[str, set[str]] | None:
        await asyncio.sleep(max(0.0, self._read_at + SHARED_SECONDS - self._clock()))
        self._next, self._read_at = None, self._clock()
        return self._read()


def _of_process(connections: Mapping[str, set[str]] | None, socket: Path, pid: int) -> int | None:
    if connections is None:
        return None
    accepted = connections.get(str(socket))
    return len(accepted & listeners.open_sockets(pid).keys()) if accepted else 0
