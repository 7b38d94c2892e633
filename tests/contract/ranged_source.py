"""A web server with ranges that stops at a byte a test orders, and counts what it has sent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

from aiohttp import web

from tests.unit.gguf_bytes import File, tensor
from tests.unit.loopback import ALL_PATHS, serving

BLOCK = 64 << 10


def large_model(size: int, seed: int) -> bytes:
    """A valid GGUF file with `size` bytes of tensors (a multiple of 32) that differ everywhere."""
    tensors = (tensor("token_embd.weight", [size // 4], 0, 0),)
    return replace(File(), tensors=tensors, data=random.Random(seed).randbytes(size)).build()


@dataclass
class Answer:
    """What the server sends. If the body is shorter than `length`, the connection is cut after it; before, a `silent` server waits."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int = 0
    ranged: bool = False
    silent: bool = False
    chunked: bool = False
    """Whether the answer has no length, so that its body may be longer."""


Fault = Callable[[web.Request, Answer], None]
"""Changes an answer to a request."""


class RangedServer:
    """One object at every path but those of `files`. An answer without a range is sent as the client takes it and not counted."""

    def __init__(self, data: bytes) -> None:
        self.host = ""
        self.data = data
        self.files: dict[str, bytes] = {}
        self.etag = '"v1"'
        self.has_ranges = True
        self.fault: Fault = lambda request, answer: None
        self.sent = 0
        """Bytes of ranges that were sent so far."""
        self.ranges: list[tuple[int, int]] = []
        """Offset and length of each range that was requested."""
        self.stop_at = len(data) * 100
        """Number of sent bytes at which every answer waits for `go_on`."""
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://{self.host}/model.gguf"

    def go_on_until(self, stop_at: int) -> None:
        """Let the answers that wait go on, and stop again at that number of sent bytes."""
        self.stop_at = stop_at
        self.go_on.set()
        self.go_on, self.stopped = asyncio.Event(), asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        answer = self._answer(request)
        self.fault(request, answer)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        if answer.chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = answer.length
        with suppress(ConnectionError):
            await response.prepare(request)
            for at in range(0, len(answer.body), BLOCK):
                if answer.ranged and self.sent >= self.stop_at:
                    self.stopped.set()
                    await self.go_on.wait()
                block = answer.body[at : at + BLOCK]
                self.sent += len(block) * answer.ranged
                await response.write(block)
            if answer.silent:
                await self.go_on.wait()
            if len(answer.body) < answer.length:
                assert request.transport is not None
                request.transport.close()
        return response

    def _answer(self, request: web.Request) -> Answer:
        """What a server without faults answers."""
        if request.headers.get("If-Match", self.etag) != self.etag:
            return Answer(412)
        data = self.files.get(request.path, self.data)
        headers = {"ETag": self.etag} | ({"Accept-Ranges": "bytes"} if self.has_ranges else {})
        wanted = request.http_range
        if wanted.start is None or not self.has_ranges:
            return Answer(200, headers, data, len(data))
        part = data[wanted]
        self.ranges.append((wanted.start, len(part)))
        headers["Content-Range"] = f"bytes {wanted.start}-{wanted.start + len(part) - 1}/{len(data)}"
        return Answer(206, headers, part, len(part), ranged=True)


@asynccontextmanager
async def ranged_server(data: bytes) -> AsyncIterator[RangedServer]:
    """A running server on a free port of loopback."""
    state = RangedServer(data)
    async with serving({ALL_PATHS: state.handle}) as state.host:
        try:
            yield state
        finally:
            state.go_on.set()
