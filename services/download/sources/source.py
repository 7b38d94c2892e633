"""The interface of a source of model bytes, and its errors.

Invariant: an opened source returns its bytes in order, and returns all of them or raises: a truncated body never looks like the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

CHUNK = 1 << 20
"""Most bytes of one read."""

MAX_OBJECT_BYTES = 2 << 40
"""Most bytes of a model: 2 TiB."""


class SourceError(Exception):
    """The source did not return the bytes. `status` is the HTTP status if there is one.

    `passing`: the source is busy or broke off, so a retry may help; `retry_after`: seconds to wait before it, if the source says so.
    """

    def __init__(
        self, message: str, *, status: int = 0, passing: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.passing = passing
        self.retry_after = retry_after


class SourceRefusedError(SourceError):
    """The source may not be used. `rule` names the rule that it breaks: scheme, host, address, credentials, folder, ..."""

    def __init__(self, message: str, *, rule: str) -> None:
        super().__init__(message)
        self.rule = rule


class SourceTruncatedError(SourceError):
    """The source returned fewer bytes than it announced, or changed while it was read."""

    def __init__(self, message: str, *, expected: int, actual: int) -> None:
        super().__init__(message, passing=True)
        self.expected = expected
        self.actual = actual


@dataclass(frozen=True, slots=True)
class SourceObject:
    """An open source: `size` in bytes or None if unknown, the file's `name`, and `etag` or ""."""

    size: int | None
    name: str
    etag: str
    chunks: AsyncIterator[bytes]


class Source(Protocol):
    """One kind of source."""

    def check(self, source: str) -> str:
        """Check a source without opening it. Returns it in the form that may be shown and recorded. Raises SourceRefusedError."""

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """Open a source; the context closes it. Raises SourceError, also while the chunks are read."""
