"""Bounds what a server can make the event loop parse: the bytes before the final head of a response, and the framing of its body.

The parser of aiohttp works on the event loop and has a limit for each line only. So a server that sends interim responses (103) without
end, or a body in chunks of a few bytes, would keep the whole service busy. The bytes are counted before the parser gets them, in slices as
long as they may be something else than payload. A response that exceeds a bound ends with a SourceError that is not transient: its
connection is aborted. Nothing is parsed after the end of a response.

The bounds use private parts of aiohttp. A release that lacks them gets no response at all, instead of one without bounds.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from services.download.sources.source import SourceError

MAX_HEAD_BYTES = 64 << 10
"""Maximum number of bytes before the end of the final head of a response, interim responses included."""
MAX_FRAMING_BYTES = 64 << 10
"""Maximum number of bytes of framing that a body may have in any case: sizes of chunks, extensions and trailers."""
MIN_PAYLOAD_OF_FRAMING = 32
"""Minimum number of bytes of payload for each further byte of framing: chunks of about 200 bytes."""
_USED = ("_parser", "_payload", "_reading_paused")
"""Attributes of a ResponseHandler that the bounds read or write."""
_SLICE = 16 << 10
"""Bytes that are parsed between two checks."""


class BoundedConnector(aiohttp.TCPConnector):
    """A connector for one request, whose response is bounded. `where` is the URL in messages; the others are those of TCPConnector."""

    def __init__(self, where: str, **options: Any) -> None:
        super().__init__(force_close=True, **options)
        made = partial(_BoundedHandler, where=where, loop=asyncio.get_running_loop())
        self._where = where
        self._factory = cast("partial[ResponseHandler]", made)

    async def connect(self, *arguments: Any, **options: Any) -> Connection:
        """Connect as TCPConnector does. Raises SourceError if the response could not be bounded."""
        connection = await super().connect(*arguments, **options)
        handler = connection.protocol
        if not isinstance(handler, _BoundedHandler) or not all(hasattr(handler, part) for part in _USED):
            connection.close()
            words = f"{self._where} is not read: its answer cannot be bounded with aiohttp {aiohttp.__version__}"
            raise SourceError(f"{words}; install aiohttp 3.14, for which the bounds were written")
        return connection


class _BoundedHandler(ResponseHandler):
    """Passes bytes of a connection to the parser of aiohttp, as far as they are within the bounds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, where: str) -> None:
        super().__init__(loop=loop)
        self._where = where
        self._head_bytes = self._body_bytes = 0
        self._unparsed = 0
        """Maximum number of bytes that the parser has and holds back, because the reader of the body is slow."""
        self._message: Any = None
        """The final head; None before it has come."""
        self._body: Any = None
        self._refused = False

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Get a head from the parser, with the stream of its body."""
        message, body = data
        if message.code >= 200 and self._message is None:
            self._message, self._body = message, body
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        """Get bytes from the connection; none to go on with what the parser holds back."""
        if data and not self._reading_paused:
            # The connection is read only if the parser holds nothing back.
            self._unparsed = 0
        done = 0
        while not self._refused and not (self._message and self._body.is_eof()):
            piece = data[done : done + self._next_length()]
            super().data_received(piece)
            done += len(piece)
            self._count(len(piece))
            if done >= len(data):
                return

    def _next_length(self) -> int:
        """Return how many bytes are parsed at once: of a body that is nothing but payload, all of them."""
        if self._message is None or self._message.chunked:
            return _SLICE
        length = self._message.headers.get("Content-Length", "")
        left = int(length) - self._body.total_bytes if length.isdecimal() else MAX_HEAD_BYTES << 10
        return max(left, _SLICE)

    def _count(self, length: int) -> None:
        if self._message is None:
            self._head_bytes += length
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    f"sends more than {MAX_HEAD_BYTES} bytes of interim responses and headers before its answer"
                )
        elif self._message.chunked:
            self._body_bytes += length
            self._unparsed += length if self._reading_paused else 0
            payload = self._body.total_bytes
            framing = self._body_bytes - payload - self._unparsed
            if framing > MAX_FRAMING_BYTES + payload // MIN_PAYLOAD_OF_FRAMING:
                self._refuse(
                    f"cuts its answer into chunks that are too small: {framing} bytes of framing for {payload} bytes"
                )

    def _refuse(self, words: str) -> None:
        """End the response with an error, for who waits for its head and who reads its body."""
        self._refused = True
        error = SourceError(f"{self._where} {words}")
        body = self._body
        # Without its parser, the end of the connection does not replace the error.
        self._parser = self._payload = None
        if self.transport is not None:
            self.transport.abort()
        self.set_exception(error)
        if body is not None:
            body.set_exception(error)
