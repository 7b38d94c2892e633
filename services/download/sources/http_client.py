"""The only HTTP client of the download service: the only place where a caller's text decides where the mesh connects.

Invariant: every address is checked before the connection, which uses that address (see `addresses`); each redirect is checked like the
first URL. A token is sent only to the origin that it belongs to. No message shows a query, because it may contain a signature.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import ssl
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr
from yarl import URL

from llamesh.kit.source_places import HUB
from services.download.sources.addresses import AddressRules
from services.download.sources.http_texts import as_written, retry_after
from services.download.sources.response_bounds import BoundedConnector
from services.download.sources.shown_texts import cause, shown, shown_phrase
from services.download.sources.source import MAX_CHUNK, SHORTAGES, SourceError, SourceRefusedError

MAX_REDIRECTS = 5
MAX_DOCUMENT_BYTES = 8 << 20
"""Maximum size of an API's answer."""
_MAX_ERROR_BYTES = 4096
_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 60.0
"""Deadline in seconds for the connection and the headers of the final answer; interim answers (103) do not extend it."""
_BODY_SECONDS = 60.0
"""Deadline in seconds for the body of an API's answer or of an error."""
_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {408, 429, 500, 502, 503, 504}
"""HTTP statuses after which a retry may help: S3 servers answer 500 (InternalError) when one of their machines fails."""
_CUT_OFF = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED}
"""Errors of the operating system after which an established connection is gone."""
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "llamesh"}


class SourceAnswerError(SourceError):
    """The source answered with an unexpected status. `headers` and the first bytes of `body` have the reason."""

    def __init__(self, message: str, response: aiohttp.ClientResponse, body: bytes) -> None:
        super().__init__(
            message,
            status=response.status,
            transient=response.status in _BUSY,
            retry_after=retry_after(response.headers.get("Retry-After", "")),
        )
        self.headers = response.headers
        self.body = body


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A token, and the address of the only service that it is sent to."""

    secret: SecretStr
    service: str

    def is_for(self, url: URL) -> bool:
        """Whether the token may be sent to a URL: one of the service's origin."""
        return bool(self.secret.get_secret_value()) and url.origin() == URL(self.service).origin()


class HttpClient:
    """Makes GET requests to https URLs, and to http URLs of the `host:port` pairs in `http_hosts`, whose address may be private.

    `redirect_rules` apply to redirects to another host or port; by default they allow no private host. `silence_seconds` limits the time
    between two reads of an answer, `answer_seconds` the time to its headers.
    """

    def __init__(
        self,
        rules: AddressRules,
        *,
        redirect_rules: AddressRules | None = None,
        http_hosts: Collection[str] = (),
        silence_seconds: float = 60,
        answer_seconds: float = _ANSWER_SECONDS,
        tls: ssl.SSLContext | None = None,
        token: BearerToken | None = None,
    ) -> None:
        self._rules = rules
        self._redirect_rules = redirect_rules or rules.of_redirects()
        self._http_hosts = frozenset(host.lower() for host in http_hosts)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=silence_seconds)
        self._answer_seconds = answer_seconds
        self._tls: ssl.SSLContext | bool = tls or True
        self._token = token

    def parsed(self, text: str) -> URL:
        """Parse a URL byte for byte. Raises SourceRefusedError if its text alone shows that it may not be requested."""
        try:
            url = as_written(text)
            host, port = url.host, url.port
        except ValueError as error:
            raise SourceRefusedError(f"not a URL: {error}", rule="url") from error
        if not host or not port:
            raise SourceRefusedError("the URL names no host", rule="host")
        if url.user is not None or url.password is not None:
            raise SourceRefusedError("a URL with a user name or password would be recorded", rule="credentials")
        if url.scheme != "https" and not (url.scheme == "http" and f"{host}:{port}" in self._http_hosts):
            raise SourceRefusedError(_no_https(url.scheme, host, port), rule="scheme")
        return url

    @asynccontextmanager
    async def get(
        self,
        first: URL,
        headers: Mapping[str, str] | None = None,
        *,
        authorization: SecretStr | None = None,
        came_from: URL | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer to a GET, after at most MAX_REDIRECTS redirects. Raises SourceError.

        `authorization` is the value of a header that is sent to the origin of `first` only. `came_from` is the URL whose server named
        `first`, which is then checked like a redirect.
        """
        url, came_from = first, came_from or first
        for _ in range(MAX_REDIRECTS + 1):
            addresses = await self._addresses(url, came_from)
            sent = self._headers(url, headers)
            if authorization is not None and url.origin() == first.origin():
                sent["Authorization"] = authorization.get_secret_value()
            async with (
                self._session(url, addresses) as session,
                _answer(session, url, sent, self._answer_seconds) as response,
            ):
                if response.status not in _REDIRECTS:
                    yield response
                    return
                came_from, url = url, self._redirected(url, response)
        raise SourceRefusedError(f"{shown(first)} redirects more than {MAX_REDIRECTS} times", rule="redirects")

    async def document(self, url: URL, what: str) -> Any:
        """Return the JSON document at a URL. Raises SourceError; `what` names the server in its message."""
        async with self.get(url, {"Accept": "application/json"}) as response:
            await expect(response, {200})
            body = await body_of(response, MAX_DOCUMENT_BYTES, what)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{what} answers with invalid JSON", status=200) from error

    def _headers(self, url: URL, headers: Mapping[str, str] | None) -> dict[str, str]:
        all_headers = {**_HEADERS, **(headers or {})}
        if self._token is not None and self._token.is_for(url):
            all_headers["Authorization"] = f"Bearer {self._token.secret.get_secret_value()}"
        return all_headers

    async def _addresses(self, url: URL, came_from: URL) -> list[str]:
        """Return the addresses of the URL's host, by the rules for redirects if another host or another port redirected to it."""
        host, port = url.host or "", url.port or 0
        rules = self._rules if _is_one_server(url, came_from) else self._redirect_rules
        plain = url.scheme == "http" and url.authority == came_from.authority
        return await rules.addresses(host, port, trusted=plain)

    def _session(self, url: URL, addresses: Sequence[str]) -> aiohttp.ClientSession:
        resolver = _Pinned(addresses)
        return aiohttp.ClientSession(
            connector=BoundedConnector(shown(url), resolver=resolver, use_dns_cache=False, ssl=self._tls, limit=1),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=self._timeout,
            read_bufsize=MAX_CHUNK,
        )

    def _redirected(self, url: URL, response: aiohttp.ClientResponse) -> URL:
        location = response.headers.get("Location")
        if not location:
            raise SourceError(f"{shown(url)} redirects without a location", status=response.status)
        try:
            target = urljoin(str(url), location)
            as_written(target)
        except ValueError as error:
            raise SourceError(f"{shown(url)} redirects to an invalid URL", status=response.status) from error
        return self.parsed(target)


def _is_one_server(url: URL, came_from: URL) -> bool:
    """Return whether two URLs have one host and one port, or the default ports of http and https."""
    ports = url.port == came_from.port or (url.is_default_port() and came_from.is_default_port())
    return url.host == came_from.host and ports


def _no_https(scheme: str, host: str, port: int) -> str:
    if scheme != "http":
        return f"the scheme {scheme} is not supported, only https"
    return (
        f"http is allowed only for the hosts in LLAMESH_HTTP_SOURCE_HOSTS, and {host}:{port} is none of them: use https"
    )


def service_client(
    rules: AddressRules, address: str, *, token: SecretStr | None = None, tls: ssl.SSLContext | None = None
) -> HttpClient:
    """Return a client for a service that a setting names: it may be private, and without TLS if the address has the scheme http.

    A service that the operator named may redirect to the private hosts that the operator named; the public Hub may not.
    """
    url = URL(address)
    return HttpClient(
        rules.allowing(url.host or ""),
        redirect_rules=None if address == HUB else rules,
        http_hosts=[f"{url.host}:{url.port}"] if url.scheme == "http" else (),
        tls=tls,
        token=BearerToken(token, address) if token is not None else None,
    )


class _Pinned(AbstractResolver):
    """Resolver that always returns the addresses that were checked, even if DNS changes in the meantime."""

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
        """Do nothing: there is nothing to close."""


@asynccontextmanager
async def _answer(
    session: aiohttp.ClientSession, url: URL, headers: Mapping[str, str], seconds: float
) -> AsyncIterator[aiohttp.ClientResponse]:
    try:
        async with asyncio.timeout(seconds):
            response = await session.get(url, allow_redirects=False, headers=headers)
    except TimeoutError as error:
        raise SourceError(f"{shown(url)} does not answer in time", transient=True) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # A retry helps if an established connection was cut off, or if this machine is short of something; not if a certificate is wrong.
        number = error.errno if isinstance(error, OSError) else None
        cut_off = isinstance(error, aiohttp.ServerDisconnectedError) or number in _CUT_OFF
        raise SourceError(
            f"{shown(url)} cannot be reached: {cause(error)}",
            transient=cut_off or number in SHORTAGES,
            unreachable=isinstance(error, OSError) and not isinstance(error, ssl.SSLError | aiohttp.ClientSSLError),
        ) from error
    try:
        yield response
    finally:
        response.close()


async def expect(response: aiohttp.ClientResponse, statuses: Collection[int]) -> None:
    """Check the status of an answer, and that its bytes are not compressed. Raises SourceError."""
    if response.status not in statuses:
        body = await _beginning(response, _MAX_ERROR_BYTES)
        answer = f"{response.status} {shown_phrase(response.reason or '')}".rstrip()
        raise SourceAnswerError(f"{shown(response.url)} answers {answer}", response, body)
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        words = "answers with compressed bytes although the request did not allow them"
        raise SourceError(f"{shown(response.url)} {words}", status=response.status)


async def body_of(response: aiohttp.ClientResponse, most: int, what: str) -> bytes:
    """Return the body of an answer. Raises SourceError if it has more than `most` bytes; `what` names the server in its message."""
    body = await _beginning(response, most + 1)
    if len(body) > most:
        raise SourceError(f"{what} answers with more than {most} bytes", status=response.status)
    return body


async def _beginning(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the first bytes of a body, fewer if the connection is cut off."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            while len(body) < most and (chunk := await response.content.read(most - len(body))):
                body += chunk
    except (aiohttp.ClientError, OSError) as error:
        if response.status == 200:
            raise SourceError(f"{shown(response.url)} cut the connection: {cause(error)}", transient=True) from error
    return bytes(body)
