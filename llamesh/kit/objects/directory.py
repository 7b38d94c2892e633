"""An object store in a directory, for one machine: engines open the published file itself.

Layout: `<root>/<kind>/<sha256>.<suffix>` for published objects, `<root>/staging/` for those that are being written (`staging.py`,
`parted_file.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from llamesh.disk_space import RESERVE_BYTES, DiskSpace, disk_space
from llamesh.durability import sync
from llamesh.kit.objects.directory_parts import DirectoryParts
from llamesh.kit.objects.parted_file import PartedFile
from llamesh.kit.objects.staging import BLOCK, StagingFile, blocks, store_errors, sweep
from llamesh.kit.objects.store import (
    ObjectDamagedError,
    ObjectInfo,
    ObjectNotFoundError,
    StoreDeniedError,
    StoreFullError,
    checked_key,
    digest_of,
)

_STAGING = "staging"
_KINDS = ("models",)
"""The kinds of objects, which are folders of the store."""
_MAX_CLOCK_DIFFERENCE = 2.0
"""Maximum difference in seconds between a file's modification time and its publication if it has not been changed since."""


class DirectoryStore:
    """Objects as files below `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._staging = self._root / _STAGING
        self.parts = DirectoryParts(self._staging, self._check_room, lambda file: _Staged(file, self))
        self._verified: dict[str, tuple[int, int, int]] = {}
        """Inode, size and time of files that were touched after their publication and whose digest was found right."""

    async def prepare(self) -> None:
        """See ObjectStore."""
        with store_errors("cannot use the folder of the object store"):
            await asyncio.to_thread(sweep, self._staging)
            self._check()

    async def sweep(self) -> None:
        """See ObjectStore."""
        with store_errors("cannot use the folder of the object store"):
            await asyncio.to_thread(sweep, self._staging)

    async def remove_staged(self, writer: str) -> None:
        """See ObjectStore. The lock of a file says whether its writer lives."""
        await self.sweep()

    async def check(self) -> None:
        """See ObjectStore."""
        with store_errors("cannot use the folder of the object store"):
            self._staging.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._check()

    async def space(self) -> DiskSpace | None:
        """See ObjectStore."""
        with store_errors("cannot use the folder of the object store"):
            return await asyncio.to_thread(_space, self._staging)

    async def cached_bytes(self) -> int | None:
        """See ObjectStore. There are no copies."""
        return None

    async def stage(self, chunks: AsyncIterator[bytes], *, expected_size: int | None = None) -> _Staged:
        """See ObjectStore."""
        with store_errors("cannot write to the object store"):
            if expected_size is not None:
                self._check_room(expected_size)
            # Not in a thread: if this task were cancelled in the meantime, the file would not be discarded.
            file = StagingFile(self._staging)
        try:
            async for block in blocks(chunks):
                with store_errors("cannot write to the object store"):
                    await asyncio.to_thread(file.write, block)
        except BaseException:
            await asyncio.to_thread(file.discard)
            raise
        return _Staged(file, self)

    def _check(self) -> None:
        """Check what a transfer would find at its end. Raises OSError, and StoreDeniedError if a complete file cannot be renamed."""
        if not os.access(self._staging, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        for kind in _KINDS:
            folder = self._root / kind
            with contextlib.suppress(FileNotFoundError):
                if folder.stat().st_dev != self._staging.stat().st_dev:
                    raise StoreDeniedError(
                        f"{folder} is on another file system than {self._staging}: move all of {self._root} to one file system,"
                        f" and make {self._root} a link to it"
                    )

    def _check_room(self, size: int) -> None:
        self._staging.mkdir(parents=True, exist_ok=True)
        usable = disk_space(self._staging).usable
        if size > usable:
            raise StoreFullError(
                f"the object needs {size} bytes and the object store has {usable} bytes free for models: {RESERVE_BYTES} bytes of the disk"
                " stay free"
            )

    async def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        return _info(key, self._path(key))

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        path = self._path(key)
        with store_errors(f"cannot delete {key}"):
            path.unlink(missing_ok=True)
            if path.parent.exists():
                await asyncio.to_thread(sync, path.parent)

    async def scan(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """See ObjectStore."""
        for key in await asyncio.to_thread(self._keys, prefix):
            with contextlib.suppress(ObjectNotFoundError):
                yield _info(key, self._root / key)

    def _keys(self, prefix: str) -> list[str]:
        keys = []
        for path in self._root.glob("*/*"):
            key = path.relative_to(self._root).as_posix()
            with contextlib.suppress(ValueError):
                if checked_key(key).startswith(prefix) and path.parent != self._staging:
                    keys.append(key)
        return sorted(keys)

    async def read(self, key: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """See ObjectStore."""
        with store_errors(f"cannot read {key}"), self.open(key) as file:
            file.seek(offset)
            left = length
            while left is None or left > 0:
                block = await asyncio.to_thread(file.read, BLOCK if left is None else min(BLOCK, left))
                if not block:
                    return
                left = None if left is None else left - len(block)
                yield block

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore."""
        with store_errors(f"cannot open {key}"):
            return self._path(key).open("rb")

    async def local_path(self, key: str, *, size: int | None = None, published: datetime | None = None) -> Path:
        """See ObjectStore. Returns the published file itself, and reads it only if its modification time shows a change."""
        path = self._path(key)
        found = _stat(key, path)
        if size is not None and found.st_size != size:
            raise ObjectDamagedError(f"{key} has {found.st_size} bytes instead of {size}")
        version = (found.st_ino, found.st_size, found.st_mtime_ns)
        changed = published is not None and found.st_mtime > published.timestamp() + _MAX_CLOCK_DIFFERENCE
        if changed and self._verified.get(key) != version:
            with store_errors(f"cannot read {key}"):
                digest = await asyncio.to_thread(_digest, path)
            if digest != digest_of(key):
                raise ObjectDamagedError(f"{key} was changed: its bytes have SHA-256 {digest}")
            self._verified[key] = version
        return path

    async def close(self) -> None:
        """See ObjectStore. Nothing is open."""

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)


class _Staged:
    key = ""

    def __init__(self, file: StagingFile | PartedFile, store: DirectoryStore) -> None:
        self._file = file
        self._store = store

    @property
    def size(self) -> int:
        return self._file.size

    @property
    def sha256(self) -> str:
        return self._file.sha256

    def open(self) -> BinaryIO:
        return self._file.path.open("rb")

    async def publish(self, key: str) -> ObjectInfo:
        target = self._store._path(key)
        with store_errors(f"cannot publish {key}"):
            await asyncio.to_thread(self._file.publish, target)
        return _info(key, target)

    async def discard(self) -> None:
        with store_errors("cannot remove a staged object"):
            await asyncio.to_thread(self._file.discard)


def _space(folder: Path) -> DiskSpace:
    """Return the room where a folder is, or will be created."""
    try:
        return disk_space(folder)
    except FileNotFoundError:
        if folder == folder.parent:
            raise
        return _space(folder.parent)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stat(key: str, path: Path) -> os.stat_result:
    try:
        with store_errors(f"cannot look up {key}"):
            return path.stat()
    except ObjectNotFoundError as error:
        raise ObjectNotFoundError(f"there is no file {key}") from error


def _info(key: str, path: Path) -> ObjectInfo:
    stats = _stat(key, path)
    return ObjectInfo(key=key, size=stats.st_size, modified=datetime.fromtimestamp(stats.st_mtime, UTC))
