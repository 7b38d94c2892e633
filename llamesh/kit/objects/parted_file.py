"""A staging file that is written in parts: at its final size from the beginning, each part at its offset.

Invariant: the writer holds an exclusive lock (flock), so one process at a time writes the file. Publishing makes a second link and leaves
the staged name, so that a process that is killed before it has recorded the published object loses nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from llamesh import locks
from llamesh.durability import sync
from llamesh.kit.objects.staging import BLOCK
from llamesh.kit.objects.store import ObjectBusyError, StoreError, StoreUnavailableError

_sync = getattr(os, "fdatasync", os.fsync)
"""macOS has no fdatasync."""
_STAT_BLOCK = 512
"""Unit of `st_blocks` in bytes, whatever the file system."""


def create_file(path: Path, size: int) -> None:
    """Create the file, without any bytes on the disk yet. Blocks."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
    sync(path.parent)


def occupied_bytes(found: os.stat_result) -> int:
    """Return how many bytes of a sparse file have a place on the disk."""
    return min(found.st_size, found.st_blocks * _STAT_BLOCK)


class PartedFile:
    """An existing file, opened and locked. Its methods block; a `close` waits for those that still run in threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle = threading.Condition()
        self._users = 0
        self._fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise ObjectBusyError(f"another process writes {path.name}") from error
        if not locks.names(path, self._fd):
            # Another process has published it or removed it between the two steps, and its name may belong to another file.
            os.close(self._fd)
            raise ObjectBusyError(f"another process removed {path.name}")
        self.size = os.fstat(self._fd).st_size
        self.sha256 = ""
        """SHA-256 of all bytes, set when it is known."""

    @property
    def occupied(self) -> int:
        """How many of its bytes have a place on the disk."""
        with self._open() as fd:
            return occupied_bytes(os.fstat(fd))

    @contextlib.contextmanager
    def _open(self) -> Iterator[int]:
        with self._idle:
            if self._fd < 0:
                raise StoreError(f"{self.path.name} was closed")
            self._users += 1
        try:
            yield self._fd
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def write(self, offset: int, batch: Iterable[bytes]) -> int:
        """Write bytes from an offset, and return the offset of their end."""
        with self._open() as fd:
            for data in batch:
                view = memoryview(data)
                while view:
                    written = os.pwrite(fd, view, offset)
                    view, offset = view[written:], offset + written
        return offset

    def sync(self) -> None:
        """Make the written bytes durable."""
        with self._open() as fd:
            _sync(fd)

    def hash(self, digest: hashlib._Hash, offset: int, length: int) -> None:
        """Add bytes of the file to a hash."""
        with self._open() as fd:
            end = offset + length
            while offset < end:
                block = os.pread(fd, min(BLOCK, end - offset), offset)
                if not block:
                    raise StoreUnavailableError(f"{self.path.name} ends at {offset} of {end} bytes")
                digest.update(block)
                offset += len(block)

    def publish(self, target: Path) -> None:
        """Give the bytes the name `target`, durably and atomically. A file system without hard links loses the staged name."""
        with self._open() as fd:
            os.fsync(fd)
            target.parent.mkdir(parents=True, exist_ok=True)
            # A link cannot replace a file, a rename can. If this process is killed in between, the store's sweep removes the link.
            link = self.path.with_name(f"{secrets.token_hex(16)}.part")
            try:
                link.hardlink_to(self.path)
            except OSError:
                link = self.path
            link.rename(target)
            sync(target.parent)

    def close(self) -> None:
        """Close the file; its lock ends. Idempotent."""
        with self._idle:
            while self._users:
                self._idle.wait()
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def remove(self) -> None:
        """Remove the staged name, then close: while the lock lasts, no other process can take the file over. Idempotent."""
        self.path.unlink(missing_ok=True)
        self.close()

    discard = close
    """A staged file is discarded; this one stays until `DirectoryParts.remove`, because its next writer may need it."""
