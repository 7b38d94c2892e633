"""Sources of models, one module for each kind. `Sources` chooses the kind by the URL scheme."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager

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
    """A Source that hands each source to the kind that reads its scheme."""

    def __init__(self, by_scheme: Mapping[str, Source]) -> None:
        """`by_scheme`: kinds of sources by lower-case URL scheme; an absolute path without a scheme belongs to "file"."""
        self._by_scheme = by_scheme

    def check(self, source: str) -> str:
        """See Source."""
        return self._kind(source).check(source)

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """See Source."""
        return self._kind(source).open(source)

    def _kind(self, source: str) -> Source:
        scheme = "file" if source.startswith("/") else source.partition(":")[0].lower()
        kind = self._by_scheme.get(scheme)
        if kind is None:
            raise SourceRefusedError(
                "a source begins with https:// or file://, or is the absolute path of a file", rule="scheme"
            )
        return kind
