"""Models from public hosts over TLS. Only here does a caller's text decide where a process of the mesh connects.

Invariant: every address is checked before the connection, which goes to that address (see `addresses`); each redirect is checked like the
first URL. Bytes arrive as they are (no compression, no ranges). A body that is shorter than announced, or slower than a limit, is an error.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.download.sources.addresses import AddressRules
from services.download.sources.source import (
    CHUNK,
    MAX_OBJECT_BYTES,
    SourceError,
    SourceObject,
    SourceRefusedError,
    SourceTruncatedError,
)

MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {429, 502, 503, 504}
"""HTTP statuses after which a retry may help."""
_URI = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
"""The characters of a URL; any other must be escaped."""
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "llamesh"}


class HttpsSource:
    """Reads https URLs; http only from the `host:port` pairs in `http_hosts`, whose address may be private."""

    def __init__(
        self,
        rules: AddressRules,
        *,
        http_hosts: Collection[str] = (),
        max_bytes: int = MAX_OBJECT_BYTES,
        connect_seconds: float = 10,
        silence_seconds: float = 60,
        least_bytes_per_minute: int = 60 * 1024,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._rules = rules
        self._http_hosts = frozenset(host.lower() for host in http_hosts)
        self._max_bytes = max_bytes
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=silence_seconds)
        self._tls: ssl.SSLContext | bool = tls or True
        self._least_bytes_per_minute = least_bytes_per_minute

    def check(self, source: str) -> str:
        """See Source. Returns the URL without query and fragment, which may contain a signature."""
        return str(self._parsed(source).with_query(None))

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source."""
        first = self._parsed(source)
        url, came_from = first, first
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._addresses(url, came_from)
            async with self._session(addresses) as session, _get(session, url) as response:
                if response.status not in _REDIRECTS:
                    size = self._checked_size(url, response)
                    yield SourceObject(
                        size=size,
                        name=unquote(first.raw_name),
                        etag=response.headers.get("ETag", ""),
                        chunks=self._chunks(url, response, size),
                    )
                    return
                came_from, url = url, self._redirected(url, response)
        raise SourceRefusedError(f"{_shown(first)} redirects more than {MAX_REDIRECTS} times", rule="redirects")

    def _parsed(self, source: str) -> URL:
        try:
            url = _as_written(source)
            host, port = url.host, url.port
        except ValueError as error:
            raise SourceRefusedError(f"not a URL: {error}", rule="url") from error
        if not host or not port:
            raise SourceRefusedError("the URL names no host", rule="host")
        if url.user is not None or url.password is not None:
            raise SourceRefusedError("a URL with a user name or password would be recorded", rule="credentials")
        if url.scheme != "https" and not (url.scheme == "http" and f"{host}:{port}" in self._http_hosts):
            raise SourceRefusedError(f"{url.scheme}: is not read, only https", rule="scheme")
        return url

    async def _addresses(self, url: URL, came_from: URL) -> list[str]:
        """Addresses of the URL's host. A redirect to another host may not lead to private addresses."""
        host, port = url.host or "", url.port or 0
        rules = self._rules if host == came_from.host else AddressRules(resolve=self._rules.resolve)
        plain = url.scheme == "http" and url.authority == came_from.authority
        return await rules.addresses(host, port, trusted=plain)

    def _session(self, addresses: Sequence[str]) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=_Pinned(addresses), use_dns_cache=False, ssl=self._tls, limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=self._timeout,
            headers=_HEADERS,
            read_bufsize=CHUNK,
        )

    def _redirected(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        location = response.headers.get("Location")
        if not location:
            raise SourceError(f"{_shown(url)} redirects to nowhere", status=response.status)
        try:
            target = urljoin(str(url), location)
            _as_written(target)
        except ValueError as error:
            raise SourceError(f"{_shown(url)} redirects to what is no URL", status=response.status) from error
        return self._parsed(target)

    def _checked_size(self, url: URL, response: aiohttp.ClientResponse) -> int | None:
        if response.status != 200:
            raise SourceError(
                f"{_shown(url)} answers {response.status} {response.reason}",
                status=response.status,
                passing=response.status in _BUSY,
                retry_after=_retry_after(response.headers.get("Retry-After", "")),
            )
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError(f"{_shown(url)} answers with compressed bytes although none were asked for", status=200)
        size = response.content_length
        if size is not None and size > self._max_bytes:
            raise SourceRefusedError(f"{size} bytes are more than the allowed {self._max_bytes}", rule="size")
        return size

    async def _chunks(self, url: URL, response: aiohttp.ClientResponse, size: int | None) -> AsyncIterator[bytes]:
        done = 0
        clock = asyncio.get_running_loop().time
        minute_ends, minute_started_at = clock() + 60, 0
        try:
            async for chunk in response.content.iter_chunked(CHUNK):
                done += len(chunk)
                if done > self._max_bytes:
                    raise SourceRefusedError(f"more than the allowed {self._max_bytes} bytes", rule="size")
                yield chunk
                if clock() > minute_ends:
                    if done - minute_started_at < self._least_bytes_per_minute:
                        raise SourceError(
                            f"{_shown(url)} sends less than {self._least_bytes_per_minute} bytes a minute"
                        )
                    minute_ends, minute_started_at = clock() + 60, done
        except aiohttp.ClientPayloadError as error:
            raise SourceTruncatedError(
                f"{_shown(url)} ended after {done} of {'unknown' if size is None else size} bytes",
                expected=size or 0,
                actual=done,
            ) from error
        except TimeoutError as error:
            raise SourceError(f"{_shown(url)} fell silent after {done} bytes", passing=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise SourceError(f"{_shown(url)} broke off after {done} bytes: {error}", passing=True) from error
        if size is not None and done != size:
            raise SourceTruncatedError(f"{_shown(url)} ended after {done} of {size} bytes", expected=size, actual=done)


class _Pinned(AbstractResolver):
    """Resolver that returns the addresses that were checked, whatever DNS says meanwhile."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Nothing to close."""


@asynccontextmanager
async def _get(session: aiohttp.ClientSession, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
    try:
        response = await session.get(url, allow_redirects=False)
    except TimeoutError as error:
        raise SourceError(f"{_shown(url)} does not answer in time", passing=True) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Only a connection that was cut off is worth a retry, not one that was never made or has a wrong certificate.
        cut_off = isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | BrokenPipeError)
        raise SourceError(f"{_shown(url)} cannot be reached: {_cause(error)}", passing=cut_off) from error
    try:
        yield response
    finally:
        response.close()


def _cause(error: Exception) -> str:
    """Why there is no connection, without the resolved address."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number = error.os_error.errno
        return os.strerror(number) if number else "no connection can be made"
    return str(error)


def _as_written(text: str) -> URL:
    """Parse a URL, path and query byte for byte, because escaping them again would break a signature. Raises ValueError.

    Scheme, host and port are parsed as a browser does, because they are checked. A text with other characters is escaped.
    """
    url = URL(text).with_fragment(None)
    if not _URI.fullmatch(text):
        return url
    exact = URL(text, encoded=True)
    return URL.build(
        scheme=url.scheme,
        authority=url.raw_authority,
        path=exact.raw_path,
        query_string=exact.raw_query_string,
        encoded=True,
    )


def _retry_after(value: str) -> float | None:
    """Seconds of a Retry-After header, which has a number or a date; None if it has neither."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        at = parsedate_to_datetime(value)
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        return max((at - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        # OverflowError: a number in it is too large for a date.
        return None


def _shown(url: URL) -> str:
    return str(url.with_query(None))
