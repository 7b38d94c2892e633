"""Open-loop load on a whole mesh: requests leave at a fixed rate, whatever becomes of those before, and none is retried.

Each request has a connection of its own, so that no failure is blamed on the request after it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

from tests.mesh.running import RunningMesh

PATIENCE = 60.0
"""Seconds after which a request without an answer counts as failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    kind: str
    """"inference" or "management"."""
    started: float
    """On the monotonic clock, in seconds."""
    ended: float
    result: str
    """The HTTP status, or the name of the failure."""

    @property
    def failed(self) -> bool:
        """Whether its client did not get what it asked for."""
        return self.result != "200"


@dataclass(frozen=True, slots=True)
class Request:
    """One request that is sent again and again."""

    kind: str
    port: int
    data: bytes
    per_second: float


class OpenLoad:
    """Sends until the end of its `with` block, then waits for the answers that are due."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.outcomes: list[Outcome] = []
        self._requests = requests
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send_all()))

    def __enter__(self) -> OpenLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def failures(self, kind: str) -> list[Outcome]:
        """The requests of one kind that failed."""
        return [outcome for outcome in self.outcomes if outcome.kind == kind and outcome.failed]

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for request in self._requests:
                group.create_task(self._send(request, group))

    async def _send(self, request: Request, group: asyncio.TaskGroup) -> None:
        due = monotonic()
        while not self._stop.is_set():
            group.create_task(self._one(request))
            due += 1 / request.per_second
            await asyncio.sleep(max(0.0, due - monotonic()))

    async def _one(self, request: Request) -> None:
        started = monotonic()
        try:
            result = await _within(PATIENCE, _ask(request))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            result = type(error).__name__
        self.outcomes.append(Outcome(request.kind, started, monotonic(), result))


def chat(mesh: RunningMesh, model: str, per_second: float = 10) -> Request:
    """A short chat."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    return Request(
        "inference", mesh.ports["inference"], _http("POST", "/v1/chat/completions", json.dumps(body)), per_second
    )


def status(mesh: RunningMesh, per_second: float = 5) -> Request:
    """The list of servers."""
    return Request("management", mesh.ports["gateway"], _http("GET", "/status", token=mesh.token), per_second)


def _http(method: str, path: str, body: str = "", token: str = "") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", f"content-length: {len(body)}"]
    lines += ["content-type: application/json"] if body else []
    lines += [f"authorization: Bearer {token}"] if token else []
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


async def _within(seconds: float, work: Coroutine[Any, Any, str]) -> str:
    async with asyncio.timeout(seconds):
        return await work


async def _ask(request: Request) -> str:
    """Send a request and read the whole answer. Returns its status; "cut off" for an answer that ends too early."""
    reader, writer = await asyncio.open_connection("127.0.0.1", request.port)
    try:
        writer.write(request.data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        body = await reader.read()
    finally:
        writer.close()
    whole = body.endswith(b"0\r\n\r\n") if "chunked" in head else len(body) == int(_header(head, "content-length"))
    return head.split(" ", 2)[1] if whole else "cut off"


def _header(head: str, name: str) -> str:
    found = [line.partition(":")[2].strip() for line in head.splitlines() if line.startswith(f"{name}:")]
    return found[0] if found else "0"
