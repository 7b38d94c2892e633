"""The interface of a source of model bytes, and its errors.

Invariant: what an opened source returns is a part of one object that does not change, complete, or an error: neither a truncated body nor
the bytes of another object ever look like the end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
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


class SourceChangedError(SourceError):
    """The object is another one than when it was opened; to open the source again gives the new one."""

    def __init__(self, message: str, *, opened: str, found: str) -> None:
        super().__init__(message, passing=True)
        self.opened = opened
        self.found = found


@dataclass(frozen=True, slots=True)
class CheckedSource:
    """A source that may be used. `address` is canonical and may have a signature; `shown` has none and may be recorded and shown.

    `name` is the default name of its model, or "" if the address tells none.
    """

    address: str
    shown: str
    name: str


RangedRead = Callable[[int, int], AsyncIterator[bytes]]
"""Returns `length` bytes from `offset`. Raises SourceError. Reads are independent: they may run at the same time, and be closed early."""


@dataclass(frozen=True, slots=True)
class SourceObject:
    """An open source.

    `size` in bytes, or None if unknown; the file's `name`; `sha256`, `revision` and `etag`, or "" where the source knows none.
    `chunks` are all bytes in order, once. `read` returns ranges; None if the source has none, or nothing that identifies the object.
    """

    size: int | None
    name: str
    etag: str
    chunks: AsyncIterator[bytes]
    read: RangedRead | None = None
    sha256: str = ""
    revision: str = ""


class Source(Protocol):
    """One kind of source."""

    def check(self, source: str) -> CheckedSource:
        """Check an address without asking anybody. Raises SourceRefusedError, with the nearest right form."""

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """Open a canonical address; the context closes it. Raises SourceError, also while bytes are read."""
