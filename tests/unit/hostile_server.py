"""A server that sends what no library would, without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


class Hostile:
    """Sends `once`, then `again` without end, to each connection, and counts the connections that it has lost."""

    def __init__(self, once: bytes, again: bytes) -> None:
        self._once = once
        self._again = again * (256 * 1024 // len(again)) if again else b""
        self.lost = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self._once)
            await writer.drain()
            while self._again:
                writer.write(self._again)
                await writer.drain()
        self.lost += 1
        writer.close()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        async with server:
            yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
