"""A web server that holds model files and fails as a test orders, and small models with contents of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from aiohttp import web

from tests.unit.gguf_bytes import STRING, File, pair, tensor
from tests.unit.loopback import ALL_PATHS, serving


def model_bytes(name: str = "tiny", size: int = 128) -> bytes:
    """A valid GGUF file of that name with `size` bytes (a multiple of 32) of tensors."""
    return replace(
        File(),
        tensors=(tensor("token_embd.weight", [size // 4], 0, 0),),
        data=bytes(size),
        extra=(pair("test.name", STRING, name),),
    ).build()


class ModelServer:
    """What is served, who asked, and when an answer goes on."""

    def __init__(self) -> None:
        self.host = ""
        self.files: dict[str, bytes] = {}
        self.etag = ""
        """The ETag of every file; "" for none."""
        self.asked: list[str] = []
        self.promised: dict[str, int] = {}
        """Content-Length of a path, where it is not the file's."""
        self.hold_after: dict[str, int] = {}
        """Bytes of a path after which the answer waits for `go_on`."""
        self.holding = asyncio.Event()
        self.go_on = asyncio.Event()
        self.busy: dict[str, list[tuple[int, str]]] = {}
        """Statuses and Retry-After of a path's first answers; status 0: the connection is cut."""

    def url(self, path: str) -> str:
        return f"http://{self.host}/{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path[1:]
        self.asked.append(path)
        if self.busy.get(path):
            status, after = self.busy[path].pop(0)
            if status:
                return web.Response(status=status, headers={"Retry-After": after} if after else {})
            assert request.transport is not None
            request.transport.abort()
        if path not in self.files:
            return web.Response(status=404)
        data = self.files[path]
        response = web.StreamResponse(headers={"ETag": self.etag} if self.etag else {})
        response.content_length = self.promised.get(path, len(data))
        await response.prepare(request)
        first = self.hold_after.get(path, len(data))
        await response.write(data[:first])
        if first < len(data):
            self.holding.set()
            await self.go_on.wait()
            await response.write(data[first:])
        if path in self.promised:
            assert request.transport is not None
            request.transport.close()
        return response


@asynccontextmanager
async def model_server() -> AsyncIterator[ModelServer]:
    """A running server on a free port of loopback."""
    state = ModelServer()
    async with serving({ALL_PATHS: state.handle}) as state.host:
        try:
            yield state
        finally:
            state.go_on.set()
