"""The interface of a source of model bytes, and its errors.

Invariant: an opened source returns bytes of one object that does not change, completely, or raises an error. A truncated body or the bytes
of another object never look like the end.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from llamesh.kit.objects import ObjectOrigin
from llamesh.v1.quant_pb2 import QuantReport


class FileRole(enum.StrEnum):
    """What a file is to its model. The names are those of ModelFileRole without its prefix."""

    WEIGHTS = "WEIGHTS"
    PROJECTOR = "PROJECTOR"
    ADAPTER = "ADAPTER"


def is_projector_name(path: str) -> bool:
    """Return whether the name of a file, the last step of its path, is that of a projector. The names of folders say nothing."""
    return "mmproj" in path.rpartition("/")[2].lower()


MAX_CHUNK = 1 << 20
"""Maximum size of one read in bytes."""

MAX_ADAPTERS = 8
"""Maximum number of LoRA adapters of a model."""
MAX_OBJECT_BYTES = 2 << 40
"""Maximum size of a model: 2 TiB."""


SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
"""Errors of the operating system that say nothing about a source: this machine lacks something for a moment."""


class SourceError(Exception):
    """The source did not return the bytes. `status` is the HTTP status if there is one, and 404 for a missing file.

    `transient`: the source is busy or was interrupted, so a retry may help. `unreachable`: no connection could be made, so a retry may help
    if the source has answered before; otherwise its address is more likely wrong. `retry_after`: seconds to wait before the retry, if the
    source gives them.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        transient: bool = False,
        unreachable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.transient = transient
        self.unreachable = unreachable
        self.retry_after = retry_after


NO_QUANT = "quant"
"""Rule of a refusal: the address names the Quant service, and none is configured."""


class SourceRefusedError(SourceError):
    """The source may not be used. `rule` names the rule that it breaks: scheme, host, address, credentials, folder, ..."""

    def __init__(self, message: str, *, rule: str) -> None:
        super().__init__(message)
        self.rule = rule


class SourceGoneError(SourceError):
    """The source has no such object, and never gets it again: what was read of it is of no use."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=404)


class SourceTruncatedError(SourceError):
    """The source returned fewer bytes than it announced, or changed while it was read."""

    def __init__(self, message: str, *, expected: int, actual: int) -> None:
        super().__init__(message, transient=True)
        self.expected = expected
        self.actual = actual


class SourceSlowError(SourceError):
    """The source sent too few bytes in a minute."""

    def __init__(self, message: str) -> None:
        super().__init__(message, transient=True)


class SourceChangedError(SourceError):
    """The object has been replaced since it was opened; opening the source again gives the new object."""

    def __init__(self, message: str, *, opened: str, found: str) -> None:
        super().__init__(message, transient=True)
        self.opened = opened
        self.found = found


@dataclass(frozen=True, slots=True)
class CheckedSource:
    """A source that may be used. `address` is canonical and may have a signature; `shown` has none and may be recorded and shown.

    `name` is the default name of its model, or "" if the address has none.
    """

    address: str
    shown: str
    name: str


RangedRead = Callable[[int, int], AsyncIterator[bytes]]
"""Yields `length` bytes from `offset`. Raises SourceError. Reads are independent: they may run in parallel and be closed early."""


@dataclass(frozen=True, slots=True)
class SourceObject:
    """An open source.

    `size` is in bytes, or None if unknown; `name` is the file's name; `sha256`, `revision` and `etag` are "" if the source has none.
    `chunks` yields all bytes in order, once. `read` returns ranges; it is None if the source has no ranges or cannot identify the object.
    `end_stream` ends `chunks`, for a caller that only uses `read`: an open answer without a reader would occupy the server.
    `local`: the bytes are on this machine. `bytes_per_second` is the limit of all reads together; 0 for none. `origin` names the object in
    an S3 server, which may copy it; None if it is in none.
    """

    size: int | None
    name: str
    etag: str
    chunks: AsyncIterator[bytes]
    read: RangedRead | None = None
    sha256: str = ""
    revision: str = ""
    end_stream: Callable[[], None] = lambda: None
    local: bool = False
    bytes_per_second: int = 0
    quality: QuantReport | None = None
    """What the checks of the Quant service have found; None if the source says nothing."""
    origin: ObjectOrigin | None = None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a source says of a model beside its files. The fields are those of the message SourceFacts."""

    license: str = ""
    chat_template_language: str = ""
    chat_template_has_tools: bool = False


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a model: its canonical address, what it is to the model, its name if the caller gave it one.

    `facts` of the first file are those of the model.
    """

    address: str
    role: FileRole = FileRole.WEIGHTS
    name: str = ""
    facts: ModelFacts = ModelFacts()


class Source(Protocol):
    """One kind of source."""

    def check(self, source: str) -> CheckedSource:
        """Check an address without any request. Raises SourceRefusedError with the nearest valid form."""

    async def files(self, source: str) -> Sequence[SourceFile]:
        """Return the files of the model at a canonical address: its parts in order, then what belongs to it. Raises SourceError."""

    def open(self, source: str) -> AbstractAsyncContextManager[SourceObject]:
        """Open the canonical address of a file; the context closes it. Raises SourceError, also while bytes are read."""
