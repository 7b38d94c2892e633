"""A server cannot keep the event loop busy with what is no payload: its response ends with an error, and other tasks get their turns."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from services.download.sources import AddressRules, SourceError, response_bounds
from services.download.sources.http_client import HttpClient
from services.download.sources.http_objects import HttpObjects
from services.download.sources.response_bounds import MAX_HEAD_BYTES
from tests.unit.hostile_server import CHUNKED, EARLY_HINTS, Hostile

SECONDS = 10.0
MIN_TURNS = 5
"""Minimum number of turns of the loop while the response comes: one for each read of the connection at least."""


async def read(host: str) -> bytes:
    client = HttpClient(AddressRules(), http_hosts=[host], answer_seconds=SECONDS)
    body = b""
    async with asyncio.timeout(SECONDS), HttpObjects(client).open(lambda: URL(f"http://{host}/m"), "m") as found:
        async for chunk in found.chunks:
            body += chunk
    return body


@pytest.mark.parametrize(
    ("once", "again", "words"),
    [
        pytest.param(b"", EARLY_HINTS, "of interim responses and headers", id="interim responses"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 20, "HTTP", id="headers"),
        pytest.param(CHUNKED, b"1\r\n\0\r\n", "too small", id="chunks of a byte"),
        pytest.param(CHUNKED, b"10\r\n0123456789abcdef\r\n", "too small", id="chunks of a few bytes"),
        pytest.param(CHUNKED, b"1;" + b"a" * 500 + b"\r\n\0\r\n", "too small", id="extensions of chunks"),
        pytest.param(
            CHUNKED + b"5\r\nhello\r\n0\r\n", b"Trailer: b\r\n", "too small|ended after 5|not valid HTTP", id="trailers"
        ),
    ],
)
async def test_a_response_without_end_that_is_no_payload_is_refused_and_not_tried_again(
    once: bytes, again: bytes, words: str
) -> None:
    turns = 0

    async def probe() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    hostile = Hostile(once, again)
    async with hostile.serving() as host:
        probing = asyncio.create_task(probe())
        with pytest.raises(SourceError, match=words) as caught:
            await read(host)
        probing.cancel()
        async with asyncio.timeout(SECONDS):
            while not hostile.lost:
                await asyncio.sleep(0)
    assert f"http://{host}/m" in str(caught.value)
    assert turns >= MIN_TURNS
    assert not caught.value.transient or "ended after" in str(caught.value)


async def test_what_comes_after_the_end_of_a_response_is_not_parsed() -> None:
    hostile = Hostile(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", EARLY_HINTS)
    async with hostile.serving() as host:
        assert await read(host) == b"hello"
        async with asyncio.timeout(SECONDS):
            while not hostile.lost:
                await asyncio.sleep(0)


@pytest.mark.parametrize("size", [256, 1000, 16 << 10, 3 << 20])
async def test_chunks_of_a_usual_size_are_read_whole(size: int) -> None:
    count = (8 << 20) // size
    body = CHUNKED + (b"%x\r\n%s\r\n" % (size, b"x" * size)) * count + b"0\r\n\r\n"
    async with Hostile(EARLY_HINTS * 10 + body, b"").serving() as host:
        assert await read(host) == b"x" * (size * count)


async def test_a_small_answer_may_come_in_chunks_of_a_byte() -> None:
    body = CHUNKED + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n"
    async with Hostile(EARLY_HINTS * (MAX_HEAD_BYTES // len(EARLY_HINTS) // 2) + body, b"").serving() as host:
        assert await read(host) == b"x" * 1000


@pytest.mark.parametrize("lacks", ["the handler", "a part of it"])
async def test_a_response_that_cannot_be_bounded_is_not_read(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release of aiohttp may have other private parts than those that the bounds use."""
    if lacks == "the handler":
        monkeypatch.setattr(response_bounds, "_BoundedHandler", type("Other", (), {}))
        monkeypatch.setattr(response_bounds, "partial", lambda _, loop, **__: partial(ResponseHandler, loop=loop))
    else:
        monkeypatch.setattr(response_bounds, "_USED", ("_parser", "_renamed"))
    hostile = Hostile(CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", b"")
    async with hostile.serving() as host:
        with pytest.raises(SourceError, match="cannot be bounded with aiohttp"):
            await read(host)
