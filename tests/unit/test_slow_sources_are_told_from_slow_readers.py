"""A server that sends too little is given up; one that waits for a reader, such as a limit of bandwidth or a slow store, is not."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from yarl import URL

from services.download.sources import AddressRules, SourceError
from services.download.sources.http_client import HttpClient
from services.download.sources.http_objects import HttpObjects
from tests.unit.loopback import serving

PIECE = b"x" * 1000


class Server:
    """Sends four pieces. Each but the first takes `seconds` by the clock of the test, after the reader has asked for it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.asked = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(PIECE)
        for _ in range(3):
            await self.asked.wait()
            self.asked.clear()
            self.now += self.seconds
            await response.write(PIECE)
        return response


async def read(server: Server, *, reader_seconds: float) -> bytes:
    """What a reader gets that needs some time for each chunk."""
    body = b""
    async with serving({"/m": server.handle}) as host:
        client = HttpClient(AddressRules(), http_hosts=[host])
        objects = HttpObjects(client, least_bytes_per_minute=1 << 20, clock=lambda: server.now)
        async with objects.open(lambda: URL(f"http://{host}/m"), "m") as found:
            async for chunk in found.chunks:
                body += chunk
                server.now += reader_seconds
                server.asked.set()
    return body


async def test_a_server_that_sends_too_little_is_given_up() -> None:
    with pytest.raises(SourceError, match="sends less than 1048576 bytes a minute") as caught:
        await read(Server(seconds=61), reader_seconds=0)
    assert caught.value.transient, "the next minute may be faster"


async def test_a_server_is_not_given_up_because_its_reader_is_slow() -> None:
    assert await read(Server(seconds=0), reader_seconds=61) == 4 * PIECE
