"""An object store that is a directory: the one-machine form, where engines open the published file itself.

Layout: `<root>/<kind>/<sha256>.<suffix>` for what is published, `<root>/staging/` for what is not. A writer holds an
exclusive lock (flock) on its staging file; the kernel drops that lock however the writer dies, so a staging file that
can be locked belongs to nobody and is swept. Publishing is fsync, rename, fsync of the directory.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from llamesh.kit.objects.store import (
    ObjectDamagedError,
    ObjectInfo,
    ObjectNotFoundError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    checked_key,
    digest_of,
)

_STAGING = "staging"
_BLOCK = 1 << 20
_CLOCK_SECONDS = 2.0
"""How much later than its publication a file's time may be without somebody having written to it."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Turn the operating system's errors into the store's words."""
    try:
        yield
    except OSError as error:
        reason = f"{what}: {error.strerror or error}"
        if error.errno in _FULL:
            raise StoreFullError(reason) from error
        if error.errno in _DENIED:
            raise StoreDeniedError(reason) from error
        if error.errno == errno.ENOENT:
            raise ObjectNotFoundError(reason) from error
        raise StoreUnavailableError(reason) from error


class StagingFile:
    """A file under a name nobody reads, locked for as long as its writer lives.

    Its methods block and run in threads. A thread outlives the task that was cancelled while it waited for it, so a
    lock keeps a late write from reaching a descriptor that is closed and may be another file's by then.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self._fd = _create_locked(directory)
        self._hash = hashlib.sha256()
        self._busy = threading.Lock()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Digest of everything written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append and hash."""
        with self._busy:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._hash.update(data)
            self.size += len(data)

    def publish(self, target: Path) -> None:
        """Make the bytes durable, then give them their name in one step."""
        with self._busy:
            os.fsync(self._fd)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.rename(target)
            _sync_directory(target.parent)
            self._close()

    def discard(self) -> None:
        """Remove the file unless it was published. Harmless when repeated."""
        with self._busy:
            if self._fd >= 0:
                self.path.unlink(missing_ok=True)
                self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


class DirectoryStore:
    """Objects as files below `root`; see the module's text for the layout."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._staging = self._root / _STAGING
        self._verified: dict[str, tuple[int, int, int]] = {}
        """Files that were written to after their publication and have the right digest all the same: inode, size, time."""

    async def prepare(self) -> None:
        """See ObjectStore."""
        with store_errors("cannot use the folder of the object store"):
            await asyncio.to_thread(sweep, self._staging)

    async def check(self) -> None:
        """See ObjectStore."""
        with store_errors("cannot use the folder of the object store"):
            self._staging.mkdir(parents=True, exist_ok=True, mode=0o750)
            if not os.access(self._staging, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async def stage(self, chunks: AsyncIterator[bytes], *, expected_size: int | None = None) -> "_Staged":
        """See ObjectStore."""
        with store_errors("cannot write to the object store"):
            if expected_size is not None:
                self._check_room(expected_size)
            # Not in a thread: a task cancelled meanwhile would leave a locked file that nobody discards.
            file = StagingFile(self._staging)
        try:
            async for block in blocks(chunks):
                with store_errors("cannot write to the object store"):
                    await asyncio.to_thread(file.write, block)
        except BaseException:
            await asyncio.to_thread(file.discard)
            raise
        return _Staged(file, self)

    def _check_room(self, size: int) -> None:
        self._staging.mkdir(parents=True, exist_ok=True)
        stats = os.statvfs(self._staging)
        free = stats.f_bavail * stats.f_frsize
        if size > free:
            raise StoreFullError(f"the object needs {size} bytes and the object store has {free} bytes free")

    async def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        return _info(key, self._path(key))

    async def delete(self, key: str) -> None:
        """See ObjectStore."""
        path = self._path(key)
        with store_errors(f"cannot delete {key}"):
            path.unlink(missing_ok=True)
            if path.parent.exists():
                await asyncio.to_thread(_sync_directory, path.parent)

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
                block = await asyncio.to_thread(file.read, _BLOCK if left is None else min(_BLOCK, left))
                if not block:
                    return
                left = None if left is None else left - len(block)
                yield block

    def open(self, key: str) -> BinaryIO:
        """See ObjectStore."""
        with store_errors(f"cannot open {key}"):
            return self._path(key).open("rb")

    async def local_path(self, key: str, *, size: int | None = None, published: datetime | None = None) -> Path:
        """See ObjectStore. The published file itself; it is read only if its time says that somebody wrote to it."""
        path = self._path(key)
        found = _stat(key, path)
        if size is not None and found.st_size != size:
            raise ObjectDamagedError(f"{key} has {found.st_size} bytes instead of {size}")
        version = (found.st_ino, found.st_size, found.st_mtime_ns)
        changed = published is not None and found.st_mtime > published.timestamp() + _CLOCK_SECONDS
        if changed and self._verified.get(key) != version:
            with store_errors(f"cannot read {key}"):
                digest = await asyncio.to_thread(_digest, path)
            if digest != digest_of(key):
                raise ObjectDamagedError(f"{key} was changed: its bytes have SHA-256 {digest}")
            self._verified[key] = version
        return path

    async def close(self) -> None:
        """See ObjectStore."""

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)


class _Staged:
    def __init__(self, file: StagingFile, store: DirectoryStore) -> None:
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


async def blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of about one MiB: a thread hop per network read would cost more than the write."""
    pending: list[bytes] = []
    size = 0
    async for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= _BLOCK:
            yield b"".join(pending)
            pending, size = [], 0
    if pending:
        yield b"".join(pending)


def sweep(staging: Path) -> int:
    """Create the directory and remove the files in it whose writers are dead; returns how many."""
    staging.mkdir(parents=True, exist_ok=True, mode=0o750)
    removed = 0
    for path in staging.iterdir():
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            removed += 1
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
    return removed


def _create_locked(directory: Path) -> tuple[Path, int]:
    directory.mkdir(parents=True, exist_ok=True, mode=0o750)
    while True:
        path = directory / f"{secrets.token_hex(16)}.part"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A sweep found the file between its creation and its lock: it is about to be removed.
            os.close(fd)
            continue
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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


__all__ = ["DirectoryStore", "StagingFile", "StoreError", "blocks", "store_errors", "sweep"]
