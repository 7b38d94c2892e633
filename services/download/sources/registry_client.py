"""Reads one registry by the OCI distribution specification: manifests, tags and blobs, with the token that each repository needs.

Invariant: the bytes of a manifest have the digest by which it was asked for. A token goes to the registry only, never along a redirect to
another host (see `http_client`), and is asked for again once it has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from urllib.parse import quote

import aiohttp
from yarl import URL

from llamesh.kit.source_places import OLLAMA, RegistryPlace
from llamesh.nearest import MAX_NAMES
from services.download.sources.addresses import AddressRules
from services.download.sources.http_client import HttpClient, body_of, expect
from services.download.sources.registry_manifests import ACCEPT, MAX_MANIFEST_BYTES
from services.download.sources.registry_tokens import RegistryTokens, read_challenge
from services.download.sources.source import SourceChangedError, SourceError

MAX_TAGS_BYTES = 256 << 10
"""Maximum size of a list of tags, which is read for an error only."""


class RegistryClient:
    """The registry at `address`, scheme and host. `named`: the operator named it, so that it may be private.

    `flat`: a manifest is asked for by digest as a blob, as Ollama's registry wants it. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        rules: AddressRules,
        address: str,
        place: RegistryPlace | None = None,
        *,
        flat: bool = False,
        http_hosts: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.origin = URL(address)
        self._flat = flat
        self._client = _client(rules, self.origin, place, http_hosts, tls)
        self._tokens = RegistryTokens(self._client, self.origin, place or RegistryPlace(), clock)

    @property
    def host(self) -> str:
        """Host and port, for messages."""
        return self.origin.host_port_subcomponent or ""

    async def manifest(self, repository: str, reference: str) -> tuple[str, bytes]:
        """Return the SHA-256 and the bytes of a manifest or an index. `reference` is a tag or `sha256:` with a digest.

        Raises SourceError.
        """
        digest = reference.removeprefix("sha256:") if reference.startswith("sha256:") else ""
        kind = "blobs" if digest and self._flat else "manifests"
        body = await self.body(repository, f"{kind}/{reference}", MAX_MANIFEST_BYTES)
        found = hashlib.sha256(body).hexdigest()
        if digest and found != digest:
            raise SourceChangedError(
                f"{self.host} answers with another manifest than sha256:{digest}", opened=digest, found=found
            )
        return found, body

    async def body(self, repository: str, path: str, most: int) -> bytes:
        """Return what is at a path of a repository. Raises SourceError, also if it is more than `most` bytes."""
        async with self.of(repository).get(self.url(repository, path), {"Accept": ACCEPT}) as response:
            await expect(response, {200})
            return await body_of(response, most, self.host)

    async def tags(self, repository: str) -> list[str]:
        """Return the first tags of a repository; empty if the registry does not list them."""
        tags: object = []
        with suppress(SourceError, ValueError, RecursionError, AttributeError):
            body = await self.body(repository, f"tags/list?n={MAX_NAMES}", MAX_TAGS_BYTES)
            tags = (await asyncio.to_thread(json.loads, body)).get("tags")
        return [tag for tag in tags[:MAX_NAMES] if isinstance(tag, str)] if isinstance(tags, list) else []

    def url(self, repository: str, path: str) -> URL:
        """Return the URL of a path of a repository."""
        return self._client.parsed(f"{self.origin.origin()}/v2/{quote(repository)}/{path}")

    def of(self, repository: str) -> RepositoryReads:
        """Return the reads of a repository."""
        return RepositoryReads(self._client, self._tokens, repository)


class RepositoryReads:
    """GET requests to one repository, with a token if the registry asks for it."""

    def __init__(self, client: HttpClient, tokens: RegistryTokens, repository: str) -> None:
        self._client = client
        self._tokens = tokens
        self._repository = repository

    @asynccontextmanager
    async def get(self, first: URL, headers: Mapping[str, str] | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer to a GET. A 401 of the registry itself is answered once, with a new token. Raises SourceError."""
        authorization = self._tokens.known(self._repository)
        async with self._client.get(first, headers, authorization=authorization) as response:
            asked = response.status == 401 and response.url.origin() == first.origin()
            challenge = read_challenge(response.headers.getall("WWW-Authenticate", [])) if asked else None
            if challenge is None:
                yield response
                return
        authorization = await self._tokens.answer(challenge, self._repository)
        async with self._client.get(first, headers, authorization=authorization) as response:
            yield response


def _client(
    rules: AddressRules,
    origin: URL,
    place: RegistryPlace | None,
    http_hosts: Collection[str],
    tls: ssl.SSLContext | None,
) -> HttpClient:
    """Return a client by the rules for addresses of callers, extended by what the operator named in `place`."""
    if place is None:
        return HttpClient(rules, tls=tls)
    named = [origin, *([URL(place.token_server)] if place.token_server else [])]
    for url in named:
        rules = rules.allowing(url.host or "")
    return HttpClient(
        rules,
        redirect_rules=None if origin.origin() == URL(OLLAMA) else rules,
        http_hosts=[*http_hosts, *(f"{url.host}:{url.port}" for url in named if url.scheme == "http")],
        tls=tls,
    )
