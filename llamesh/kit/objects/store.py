"""What every object store promises, and the words in which it fails.

A store answers in plain values and raises only `StoreError`s, so that callers decide the same way whether the bytes
lie on a disk or behind S3. Keys are content addresses: an object never changes once it is published.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

_KEY = re.compile(r"[a-z]{1,16}/[0-9a-f]{64}(?:-[0-9a-f]{16})?(?:\.[a-z0-9]{1,8})?", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class StoreError(Exception):
    """Something a store could not do. The message is fit for a user; the cause is chained."""


class ObjectNotFoundError(StoreError):
    """No object is published under the key."""


class ObjectDamagedError(StoreError):
    """The object's bytes are not those that were published. Reading them again does not help."""


class StoreFullError(StoreError):
    """The bytes do not fit: disk, quota or inodes are used up. Trying again helps only after space was made."""


class StoreDeniedError(StoreError):
    """The store refuses these credentials, or this process lacks the permission. Trying again does not help."""


class StoreUnavailableError(StoreError):
    """The store cannot be reached or failed inside. Trying again later may help."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A published object: its key, its length in bytes, and when it was published (UTC)."""

    key: str
    size: int
    modified: datetime


class StagedObject(Protocol):
    """Complete bytes that nobody can see yet. Ends in exactly one of `publish` and `discard`."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    @property
    def sha256(self) -> str:
        """Digest of the bytes as they were written, in lower-case hex."""

    def open(self) -> BinaryIO:
        """A seekable reader over the bytes. Blocks: use it in a thread, and close it."""

    async def publish(self, key: str) -> ObjectInfo:
        """Make the bytes visible under `key` in one step, durably. An object already there is replaced by its equal."""

    async def discard(self) -> None:
        """Remove the bytes. Harmless after `publish` and when repeated."""


class ObjectStore(Protocol):
    """A flat set of immutable objects."""

    async def prepare(self) -> None:
        """Create what the store needs (directories, the bucket) and remove what dead writers left behind."""

    async def check(self) -> None:
        """Say whether the store can be used now, by raising where it cannot. Creates again what was removed (directory, bucket)."""

    async def stage(self, chunks: AsyncIterator[bytes], *, expected_size: int | None = None) -> StagedObject:
        """Write the chunks where nobody sees them. Whatever fails or is cancelled leaves nothing behind.

        `expected_size` in bytes lets a store refuse early (StoreFullError) and choose its part size; it is not
        enforced.
        """

    async def stat(self, key: str) -> ObjectInfo:
        """The object's facts. Raises ObjectNotFoundError."""

    async def delete(self, key: str) -> None:
        """Remove the object; harmless when there is none. Readers that hold it open keep reading."""

    def scan(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Every published object whose key starts with `prefix`, in key order."""

    def read(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes from `offset`, `length` of them or all. Raises ObjectNotFoundError."""

    def open(self, key: str) -> BinaryIO:
        """A seekable reader. Blocks: use it in a thread, and close it. Raises ObjectNotFoundError."""

    async def local_path(self, key: str, *, size: int | None = None, published: datetime | None = None) -> Path:
        """A local file with the object's bytes, for programs that open files. Not to be written to or moved.

        `size` and `published` are what the caller knows of the object: its length in bytes, and a moment after which nobody
        wrote to it. Raises ObjectNotFoundError, or ObjectDamagedError where the bytes are others than the key says.
        """

    async def close(self) -> None:
        """Let go of connections and threads."""


def object_key(kind: str, sha256: str, suffix: str = "", *, copy: str = "") -> str:
    """The key of content with this digest: `models/<sha256>.gguf`. Raises ValueError on anything but plain values.

    `copy`, 16 hexadecimal digits, tells apart objects with the same bytes: `models/<sha256>-<copy>.gguf`.
    """
    return checked_key(f"{kind}/{sha256}{f'-{copy}' if copy else ''}{suffix}")


def checked_key(key: str) -> str:
    """The key itself when it has the generated form, else ValueError: no path can be made of anything else."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"not an object key: {key[:100]!r}")
    return key


def digest_of(key: str) -> str:
    """The SHA-256 that a key names."""
    match = _DIGEST.search(checked_key(key).partition("/")[2])
    assert match is not None
    return match.group()


async def put(store: ObjectStore, key: str, chunks: AsyncIterator[bytes]) -> ObjectInfo:
    """Stage and publish in one call, for content whose digest is known: ValueError when the bytes have another one."""
    wanted = digest_of(key)
    staged = await store.stage(chunks)
    try:
        if staged.sha256 != wanted:
            raise ValueError(f"the content has SHA-256 {staged.sha256}, the key names {wanted}")
        return await staged.publish(key)
    finally:
        await staged.discard()
