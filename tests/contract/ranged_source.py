"""A web server with ranges that stops at a byte a test orders, and counts what it has sent."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from aiohttp import web

from tests.unit.gguf_bytes import File, tensor
from tests.unit.loopback import ALL_PATHS, serving

BLOCK = 64 << 10


def large_model(size: int, seed: int) -> bytes:
    """A valid GGUF file with `size` bytes of tensors (a multiple of 32) that differ everywhere."""
    tensors = (tensor("token_embd.weight", [size // 4], 0, 0),)
    return replace(File(), tensors=tensors, data=random.Random(seed).randbytes(size)).build()


class RangedServer:
    """One object at every path but those of `files`. An answer without a range is sent as the client takes it and not counted."""

    def __init__(self, data: bytes) -> None:
        self.host = ""
        self.data = data
        self.files: dict[str, bytes] = {}
        self.etag = '"v1"'
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
        if request.headers.get("If-Match", self.etag) != self.etag:
            return web.Response(status=412)
        headers = {"ETag": self.etag, "Accept-Ranges": "bytes"}
        wanted = request.http_range
        ranged = wanted.start is not None
        data = self.files.get(request.path, self.data)
        part, first = data[wanted], wanted.start or 0
        if ranged:
            self.ranges.append((first, len(part)))
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if ranged else 200, headers=headers)
        response.content_length = len(part)
        with suppress(ConnectionError):
            await response.prepare(request)
            for at in range(0, len(part), BLOCK):
                if ranged and self.sent >= self.stop_at:
                    self.stopped.set()
                    await self.go_on.wait()
                block = part[at : at + BLOCK]
                self.sent += len(block) * ranged
                await response.write(block)
        return response


@asynccontextmanager
async def ranged_server(data: bytes) -> AsyncIterator[RangedServer]:
    """A running server on a free port of loopback."""
    state = RangedServer(data)
    async with serving({ALL_PATHS: state.handle}) as state.host:
        try:
            yield state
        finally:
            state.go_on.set()
