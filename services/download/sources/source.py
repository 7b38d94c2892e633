"""What a source of model bytes promises, and the words in which it refuses or fails.

A source is opened once and gives its bytes in order. It either gives every byte it promised or raises; a short body
never looks like an end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

CHUNK = 1 << 20
"""Bytes read at once, at most."""

MAX_OBJECT_BYTES = 2 << 40
"""Nothing larger than 2 TiB is fetched."""


class SourceError(Exception):
    """The source did not give the bytes. `status` is the HTTP status, where there is one.

    `passing`: it is busy or was cut off, so trying again soon may help; `retry_after`: not before so many seconds, as it says itself.
    """

    def __init__(
        self, message: str, *, status: int = 0, passing: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.passing = passing
        self.retry_after = retry_after


class SourceRefusedError(SourceError):
    """The source may not be used. `rule` names the rule it breaks: scheme, host, address, credentials, folder, ..."""

    def __init__(self, message: str, *, rule: str) -> None:
        super().__init__(message)
        self.rule = rule


class SourceTruncatedError(SourceError):
    """The source promised more bytes than it gave, or other ones than at the start."""

    def __init__(self, message: str, *, expected: int, actual: int) -> None:
        super().__init__(message, passing=True)
        self.expected = expected
        self.actual = actual


@dataclass(frozen=True, slots=True)
class SourceObject:
    """An open source: `size` in bytes or None where it does not say, its file `name`, and `etag` where it has one."""

    size: int | None
    name: str
    etag: str
    chunks: AsyncIterator[bytes]


class Source(Protocol):
    """One kind of source."""

    def check(self, source: str) -> str:
        """The source in the form that may be shown and recorded, without reaching for it. Raises SourceRefusedError."""

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """Open it; it is closed with the context. Raises SourceError, also while the chunks are read."""
