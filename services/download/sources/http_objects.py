"""Opens objects by HTTP GET, for every source whose bytes come over HTTP.

`open` makes one request; the answer identifies the object and streams it. If the answer has a strong ETag and offers ranges, parts of the
object can be read too. Invariant: a part is of the object that was opened. The request has the ETag, and the answer's ETag and
Content-Range are checked, because some caches ignore If-Match. A body that is shorter than announced, or slower than a limit, is an error.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from time import monotonic
from typing import Protocol

import aiohttp
from yarl import URL

from services.download.sources.http_client import expect
from services.download.sources.shown_texts import cause, shown
from services.download.sources.source import (
    MAX_CHUNK,
    MAX_OBJECT_BYTES,
    SourceChangedError,
    SourceError,
    SourceObject,
    SourceRefusedError,
    SourceSlowError,
    SourceTruncatedError,
)

Locate = Callable[[], URL]
"""Returns the object's address. It is called before each request, so that an address may be signed for a short time."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ETAG = re.compile(r"[\x20-\x7e]{0,1024}")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)


class Gets(Protocol):
    """Makes GET requests: an HttpClient, or what adds to one."""

    def get(
        self, first: URL, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """See HttpClient."""


class HttpObjects:
    """Opens objects of at most `max_bytes`. A body with less than `least_bytes_per_minute` is an error.

    `digest_header` is the response header in which a server gives the SHA-256 of an object; empty if there is none.
    `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        client: Gets,
        *,
        max_bytes: int = MAX_OBJECT_BYTES,
        least_bytes_per_minute: int = 60 * 1024,
        digest_header: str = "",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._digest_header = digest_header
        self._clock = clock
        self._client = client
        self._max_bytes = max_bytes
        self._least_bytes_per_minute = least_bytes_per_minute

    @asynccontextmanager
    async def open(
        self, locate: Locate, name: str, *, sha256: str = "", revision: str = "", immutable: bool = False
    ) -> AsyncIterator[SourceObject]:
        """Open the object at the address that `locate` returns. Raises SourceError.

        `immutable`: the address names the bytes by their SHA-256, so that takes the place of the ETag, which may differ between the servers
        to which the address redirects.
        """
        async with self._client.get(locate()) as response:
            await expect(response, {200})
            size = response.content_length
            if size is not None and size > self._max_bytes:
                raise SourceRefusedError(f"{size} bytes are more than the allowed {self._max_bytes}", rule="size")
            etag = f'"sha256:{sha256}"' if immutable else _etag(response)
            ranged = size is not None and etag.startswith('"') and response.headers.get("Accept-Ranges") == "bytes"
            yield SourceObject(
                size=size,
                name=name,
                etag=etag,
                chunks=self._body(response, size),
                read=partial(self._range, locate, "" if immutable else etag, size or 0) if ranged else None,
                sha256=sha256 or self._digest(response),
                revision=revision,
                end_stream=response.close,
            )

    def _digest(self, response: aiohttp.ClientResponse) -> str:
        given = response.headers.get(self._digest_header, "").lower() if self._digest_header else ""
        return given if _DIGEST.fullmatch(given) else ""

    async def _range(self, locate: Locate, etag: str, size: int, offset: int, length: int) -> AsyncIterator[bytes]:
        """See RangedRead. `etag` is "" if the address names the bytes."""
        if length <= 0:
            return
        last = offset + length - 1
        headers = {"Range": f"bytes={offset}-{last}"} | ({"If-Match": etag} if etag else {})
        async with self._client.get(locate(), headers) as response:
            if response.status == 412:
                raise SourceChangedError(f"{shown(response.url)} changed while it was read", opened=etag, found="")
            await expect(response, {206})
            _check_range(response, etag, (offset, last, size))
            body = self._body(response, length)
            try:
                async for chunk in body:
                    yield chunk
            finally:
                await body.aclose()

    async def _body(self, response: aiohttp.ClientResponse, size: int | None) -> AsyncGenerator[bytes, None]:
        """Yield the body: `size` bytes, or all bytes if `size` is None."""
        where = shown(response.url)
        done = counted = 0
        waited, since = 0.0, self._clock()
        try:
            while chunk := await _piece(response):
                # Only the time counts in which this reader waits for the server, not that in which it is held up itself.
                waited += self._clock() - since
                done += len(chunk)
                if size is not None and done > size:
                    raise SourceError(f"{where} sends more than {size} bytes")
                if done > self._max_bytes:
                    raise SourceRefusedError(f"more than the allowed {self._max_bytes} bytes", rule="size")
                if waited > 60:
                    if done - counted < self._least_bytes_per_minute:
                        raise SourceSlowError(f"{where} sends less than {self._least_bytes_per_minute} bytes a minute")
                    waited, counted = 0.0, done
                yield chunk
                since = self._clock()
        except aiohttp.ClientPayloadError as error:
            raise SourceTruncatedError(
                f"{where} ended after {done} of {'unknown' if size is None else size} bytes",
                expected=size or 0,
                actual=done,
            ) from error
        except TimeoutError as error:
            raise SourceError(f"{where} sent nothing more after {done} bytes", transient=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise SourceError(
                f"{where} cut the connection after {done} bytes: {cause(error)}", transient=True
            ) from error
        if size is not None and done != size:
            raise SourceTruncatedError(f"{where} ended after {done} of {size} bytes", expected=size, actual=done)


def _etag(response: aiohttp.ClientResponse) -> str:
    """Return the ETag of an answer, or "" if it cannot be stored and sent again."""
    given = response.headers.get("ETag", "")
    return given if _ETAG.fullmatch(given) else ""


def _check_range(response: aiohttp.ClientResponse, etag: str, wanted: tuple[int, int, int]) -> None:
    """Check that an answer with status 206 is the wanted part (first byte, last byte, size) of the object with this ETag, if it has one."""
    where, first, last, size = shown(response.url), *wanted
    header = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(header)
    now = _etag(response) if etag and "ETag" in response.headers else etag
    if now != etag or (found and found[3] not in ("*", str(size))):
        raise SourceChangedError(f"{where} changed while it was read", opened=etag, found=now)
    if found is None or (int(found[1]), int(found[2])) != (first, last):
        raise SourceError(f"bytes {first}-{last} of {where} were requested, the answer has {header[:80]!r}", status=206)


async def _piece(response: aiohttp.ClientResponse) -> bytes:
    """Return what has come of a body, b"" at its end: piece by piece, because to join pieces copies every byte.

    They are joined if the server cuts the body into chunks, which may have one byte each.
    """
    if response.headers.get("Transfer-Encoding"):
        return await response.content.read(MAX_CHUNK)
    piece, _ = await response.content.readchunk()
    return piece
