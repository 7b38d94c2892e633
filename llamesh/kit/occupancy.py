"""Whether an engine is busy: the one definition that sleep, drain and roll-out share with the engine's own drain.

Invariant: an engine is busy if llama.cpp works on a request or has one waiting, or if a client holds a connection to it. The
connections count because llama.cpp does not count a request that it still parses and tokenizes; Envoy holds one connection a request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llamesh import listeners

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
    accepted = listeners.connected(str(socket))
    if not accepted:
        return None if accepted is None else 0
    return len(accepted & listeners.open_sockets(pid).keys())
