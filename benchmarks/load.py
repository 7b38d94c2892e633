"""A load generator, the same for every target: persistent HTTP/1.1 connections with one request at a time on each.

It measures latency; its own CPU time does not count, only that of the processes under test.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Outcome:
    """Result of one run."""

    seconds: list[float] = field(default_factory=list)
    failures: int = 0
    first_byte: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return a quantile of the latency in seconds."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Request:
    """A request that is sent repeatedly."""

    port: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""

    def bytes(self) -> bytes:
        """Bytes of the request."""
        head = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        start = (
            f"{self.method} {self.path} HTTP/1.1\r\nhost: localhost\r\n{head}content-length: {len(self.body)}\r\n\r\n"
        )
        return start.encode() + self.body


async def run(request: Request, *, count: int, concurrency: int) -> Outcome:
    """Send a request `count` times over `concurrency` connections."""
    outcome = Outcome()
    left = iter(range(count))
    data = request.bytes()

    async def worker() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", request.port)
        for _ in left:
            started = time.perf_counter()
            writer.write(data)
            status, chunks = await _answer(reader)
            ended = time.perf_counter()
            outcome.seconds.append(ended - started)
            if status != 200:
                outcome.failures += 1
            if len(chunks) > 2:
                outcome.first_byte.append(chunks[0] - started)
                outcome.gaps.append((chunks[-1] - chunks[0]) / (len(chunks) - 1))
        writer.close()

    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return outcome


async def _answer(reader: asyncio.StreamReader) -> tuple[int, list[float]]:
    """Read an answer; return its status, and the time of each chunk of a stream."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split(" ", 2)[1])
    if "transfer-encoding: chunked" not in head:
        length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
        await reader.readexactly(length)
        return status, []
    arrivals = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        await reader.readexactly(size + 2)
        arrivals.append(time.perf_counter())
    await reader.readexactly(2)
    return status, arrivals
