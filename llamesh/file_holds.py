"""Holds on files: whoever uses a file of the node's cache holds it, and whoever removes files of the cache removes only those nobody holds.

A hold is a shared lock (flock) on the file, a removal lock an exclusive one. The kernel drops both when the process ends, however it ends,
and they work between containers that share a folder. Invariant: a file that was held when it still had its name stays until the hold ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from llamesh import locks

MAX_LOCKED_SECONDS = 5.0
"""Longest wait for an exclusive lock to end. A removal takes milliseconds; a writer of an object store keeps its lock until it has recorded
the object."""
_POLL_SECONDS = 0.02


@contextlib.contextmanager
def held(paths: Iterable[Path], clock: Callable[[], float] = time.time) -> Iterator[None]:
    """Hold files, and note their use at the begin and the end. `clock` returns seconds since 1970.

    Blocks for at most MAX_LOCKED_SECONDS. Raises OSError if a file cannot be opened or was removed meanwhile.
    """
    with contextlib.ExitStack() as stack:
        opened = list(dict.fromkeys(paths))
        for path in opened:
            stack.enter_context(_held(path))
            note_use(path, clock())
        yield
        for path in opened:
            note_use(path, clock())


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock_shared(fd)
        if not locks.names(path, fd):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield
    finally:
        os.close(fd)


def _lock_shared(fd: int) -> None:
    deadline = time.monotonic() + MAX_LOCKED_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_SECONDS)
        except OSError:
            # Some network file systems have no locks. Such a file is not part of a cache that removes files.
            return
        else:
            return


def note_use(path: Path, now: float) -> None:
    """Set the access time of a file, because file systems may not do so. Its modification time stays. A failure is ignored."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(int(now * 1e9), path.stat().st_mtime_ns))


class RemovalLock:
    """An exclusive lock on a file that is about to be removed: while it lasts, nobody begins to hold the file."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def of(cls, path: Path) -> RemovalLock | None:
        """Lock a file for its removal; None if somebody holds it or it is gone."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        if not locks.names(path, fd):
            # Removed meanwhile; the name may belong to a file that somebody holds.
            os.close(fd)
            return None
        return cls(path, fd)

    def remove(self) -> None:
        """Remove the file. Raises OSError."""
        self.path.unlink(missing_ok=True)

    def end(self) -> None:
        """Release the lock."""
        os.close(self._fd)
