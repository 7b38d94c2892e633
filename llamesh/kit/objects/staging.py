"""Staging files: bytes on disk under a name that no reader uses, until they are complete.

Invariant: a writer holds an exclusive lock (flock) on its staging file. The kernel drops the lock if the writer dies, so a file that
can be locked has no writer, and `sweep` removes it. Publishing is fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from llamesh.durability import sync
from llamesh.kit.objects.parts import SUFFIX
from llamesh.kit.objects.store import (
    ObjectNotFoundError,
    StoreDeniedError,
    StoreFullError,
    StoreUnavailableError,
)

BLOCK = 1 << 20
"""Number of bytes that are read or written at once."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV}
"""Errors that a person must mend. EXDEV: a folder of the store is on another file system."""


@contextlib.contextmanager
def store_errors(what: str) -> Iterator[None]:
    """Raise the operating system's errors as StoreErrors."""
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
    """One staging file and its lock.

    Its methods block, so callers run them in threads. A thread continues after the task that waits for it was cancelled; a mutex keeps a
    late write from a descriptor that is closed and may already belong to another file.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self._fd = _create_locked(directory)
        self._hash = hashlib.sha256()
        self._busy = threading.Lock()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of everything written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append the data and hash it."""
        with self._busy:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            self._hash.update(data)
            self.size += len(data)

    def publish(self, target: Path) -> None:
        """Make the bytes durable, then rename the file to `target`."""
        with self._busy:
            os.fsync(self._fd)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.path.rename(target)
            sync(target.parent)
            self._close()

    def discard(self) -> None:
        """Remove the file unless it was published. Idempotent."""
        with self._busy:
            if self._fd >= 0:
                self.path.unlink(missing_ok=True)
                self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1


async def batches(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Collect small chunks of about one MiB: one change of threads for each network read would cost more than the write."""
    pending: list[bytes] = []
    size = 0
    async for chunk in chunks:
        pending.append(chunk)
        size += len(chunk)
        if size >= BLOCK:
            yield pending
            pending, size = [], 0
    if pending:
        yield pending


async def blocks(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Join small chunks to blocks of about one MiB."""
    async for batch in batches(chunks):
        yield b"".join(batch)


def sweep(staging: Path) -> int:
    """Create the directory and remove the files whose writers are dead; return how many. Files in parts survive their writers."""
    staging.mkdir(parents=True, exist_ok=True, mode=0o750)
    removed = 0
    for path in staging.iterdir():
        if path.suffix == SUFFIX:
            continue
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
            # A sweep found the file before it was locked here, and is about to remove it.
            os.close(fd)
            continue
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)
