"""The protocol of object stores, and their errors.

Invariant: a store raises only `StoreError`s, so that callers handle a disk and S3 in the same way. Keys are content addresses: a published
object never changes.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from llamesh.disk_space import DiskSpace

if TYPE_CHECKING:
    from llamesh.kit.objects.parts import PartedObjects

_KEY = re.compile(r"[a-z]{1,16}/[0-9a-f]{64}(?:-[0-9a-f]{16})?(?:\.[a-z0-9]{1,8})?", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


SWEEP_SECONDS = 600.0
"""Seconds between two sweeps of a store by a process that uses it."""


class StoreError(Exception):
    """An operation of a store failed. The message is for users; the cause is chained."""


class ObjectNotFoundError(StoreError):
    """There is no object with this key."""


class ObjectDamagedError(StoreError):
    """The bytes of the object differ from those that were published. A retry cannot help."""


class ObjectChangedError(StoreError):
    """The object to copy from has another ETag than the caller names."""


class StoreFullError(StoreError):
    """The bytes do not fit: disk, quota or inodes are exhausted. A retry helps only after space was freed."""


class StoreShortError(StoreFullError):
    """The rest of an object in parts does not fit. The store keeps the parts that it has, and goes on once space was freed."""


class StoreDeniedError(StoreError):
    """The store refuses the credentials, this process lacks a permission, or a folder is on another file system. A retry cannot help."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or has an internal error. A later retry may help."""


class ObjectBusyError(StoreUnavailableError):
    """Another process writes the object now."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A published object: its key, its length in bytes, and when it was published (UTC)."""

    key: str
    size: int
    modified: datetime


class StagedObject(Protocol):
    """Complete bytes that are not published yet. Call exactly one of `publish` and `discard` at the end."""

    @property
    def key(self) -> str:
        """The only key for `publish`, under which the store has the bytes already; "" if they are staged."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the written bytes, in lower-case hex."""

    def open(self) -> BinaryIO:
        """Open a seekable reader of the bytes. It blocks: use it in a thread, and close it."""

    async def publish(self, key: str) -> ObjectInfo:
        """Make the bytes visible under `key`, atomically and durably. Replaces an equal object with this key."""

    async def discard(self) -> None:
        """Remove the bytes. Idempotent, and harmless after `publish`. The bytes of an object in parts stay (see `parts`)."""


class ObjectStore(Protocol):
    """A flat collection of immutable objects."""

    @property
    def parts(self) -> "PartedObjects | None":
        """The objects that are written in parts; None if the store cannot write so."""

    async def prepare(self) -> None:
        """Create directories or the bucket, and remove staged bytes of dead writers."""

    async def sweep(self) -> None:
        """Remove staged bytes of dead writers. Where nothing tells whether a writer lives, those of other writers stay for days."""

    async def remove_staged(self, writer: str) -> None:
        """Remove the staged bytes of a writer of which the caller knows that it has ended. See `object_store`."""

    async def check(self) -> None:
        """Raise if the store cannot be used now. Creates a directory or bucket that was removed."""

    async def space(self) -> DiskSpace | None:
        """Return the room on the disk of the store; None if the store does not say. Changes nothing."""

    async def cached_bytes(self) -> int | None:
        """Return the bytes of the local copies of objects; None if programs open the objects themselves."""

    async def stage(self, chunks: AsyncIterator[bytes], *, expected_size: int | None = None) -> StagedObject:
        """Write the chunks without making them visible. A failure or cancellation leaves nothing behind.

        With `expected_size`, in bytes, a store can refuse early (StoreFullError) and choose its part size; the size is not enforced.
        """

    async def stat(self, key: str) -> ObjectInfo:
        """Return size and time of an object; ObjectNotFoundError."""

    async def delete(self, key: str) -> None:
        """Remove an object if it exists. Open readers can go on reading."""

    def scan(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield every published object whose key starts with `prefix`, in the order of keys."""

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `offset`, `length` of them or all; ObjectNotFoundError."""

    def open(self, key: str) -> BinaryIO:
        """Open a seekable reader; ObjectNotFoundError. It blocks: use it in a thread, and close it."""

    async def local_path(self, key: str, *, size: int | None = None, published: datetime | None = None) -> Path:
        """Return a local file with the bytes of the object, for programs that open files. Do not write to it or move it.

        `size` is the known length in bytes, `published` a time after which the object was not changed. Raises ObjectNotFoundError, or
        ObjectDamagedError if the bytes do not have the digest in the key.
        """

    async def close(self) -> None:
        """Close connections and threads."""


def object_key(kind: str, sha256: str, suffix: str = "", *, copy: str = "") -> str:
    """Make the key of content with this digest: `models/<sha256>.gguf`; ValueError if a part is malformed.

    `copy`, 16 hexadecimal digits, distinguishes objects with the same bytes: `models/<sha256>-<copy>.gguf`.
    """
    return checked_key(f"{kind}/{sha256}{f'-{copy}' if copy else ''}{suffix}")


def is_key(name: str) -> bool:
    """Return whether a name is a well-formed key."""
    return _KEY.fullmatch(name) is not None


def checked_key(key: str) -> str:
    """Return a well-formed key, else raise ValueError: a well-formed key cannot name a path outside the store."""
    if not is_key(key):
        raise ValueError(f"not an object key: {key[:100]!r}")
    return key


def digest_of(key: str) -> str:
    """Return the SHA-256 in a key."""
    match = _DIGEST.search(checked_key(key).partition("/")[2])
    assert match is not None
    return match.group()


async def put(store: ObjectStore, key: str, chunks: AsyncIterator[bytes]) -> ObjectInfo:
    """Stage and publish content; ValueError if its digest is not the one in the key."""
    wanted = digest_of(key)
    staged = await store.stage(chunks)
    try:
        if staged.sha256 != wanted:
            raise ValueError(f"the content has SHA-256 {staged.sha256}, the key names {wanted}")
        return await staged.publish(key)
    finally:
        await staged.discard()
