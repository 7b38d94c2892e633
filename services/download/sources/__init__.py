"""Where models come from. `Sources` chooses by the source's scheme; each kind stands in a module of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from services.download.sources.addresses import AddressRules
from services.download.sources.file import FileSource
from services.download.sources.https import HttpsSource
from services.download.sources.source import (
    Source,
    SourceError,
    SourceObject,
    SourceRefusedError,
    SourceTruncatedError,
)

__all__ = [
    "AddressRules",
    "FileSource",
    "HttpsSource",
    "Source",
    "SourceError",
    "SourceObject",
    "SourceRefusedError",
    "SourceTruncatedError",
    "Sources",
]


class Sources:
    """A Source that knows which kind of source a text names."""

    def __init__(
        self,
        *,
        import_directories: Sequence[Path] = (),
        private_hosts: Collection[str] = (),
        http_hosts: Collection[str] = (),
    ) -> None:
        self._file = FileSource(import_directories)
        self._https = HttpsSource(
            AddressRules(private_hosts=frozenset(host.lower() for host in private_hosts)), http_hosts=http_hosts
        )

    def check(self, source: str) -> str:
        """See Source."""
        return self._kind(source).check(source)

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """See Source."""
        return self._kind(source).open(source)

    def _kind(self, source: str) -> Source:
        scheme = source.partition(":")[0].lower()
        if scheme in ("https", "http"):
            return self._https
        if scheme == "file" or source.startswith("/"):
            return self._file
        raise SourceRefusedError(
            "a source begins with https:// or file://, or is the absolute path of a file", rule="scheme"
        )
