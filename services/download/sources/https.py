"""Models from public hosts over TLS, at any address that a caller gives."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from urllib.parse import unquote

from llamesh.model_addresses import default_name
from services.download.sources.addresses import AddressRules
from services.download.sources.http_client import HttpClient
from services.download.sources.http_objects import HttpObjects
from services.download.sources.named_parts import NamedParts
from services.download.sources.shown_texts import shown
from services.download.sources.source import MAX_OBJECT_BYTES, CheckedSource, SourceObject


class HttpsSource(NamedParts):
    """Reads https URLs; http only from the `host:port` pairs in `http_hosts`, whose address may be private."""

    def __init__(
        self,
        rules: AddressRules,
        *,
        http_hosts: Collection[str] = (),
        max_bytes: int = MAX_OBJECT_BYTES,
        silence_seconds: float = 60,
        least_bytes_per_minute: int = 60 * 1024,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._client = HttpClient(rules, http_hosts=http_hosts, silence_seconds=silence_seconds, tls=tls)
        self._objects = HttpObjects(self._client, max_bytes=max_bytes, least_bytes_per_minute=least_bytes_per_minute)

    def check(self, source: str) -> CheckedSource:
        """See Source. The shown form has no query and no fragment, because they may contain a signature."""
        address = shown(self._client.parsed(source))
        return CheckedSource(source, address, default_name(address))

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """See Source."""
        url = self._client.parsed(source)
        return self._objects.open(lambda: url, unquote(url.raw_name))
