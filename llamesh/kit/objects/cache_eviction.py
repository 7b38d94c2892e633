"""Evicts files from the cache of a node to make room, the least recently used first (LRU).

A file stays if a process holds it (`llamesh.file_holds`) or if it was used within MIN_KEPT_SECONDS: an engine may be about to open it.
Staged files count with their final size, so fills that run at the same time do not get the same room twice.

Invariant: files are removed only if their removal makes the room that is needed, and only by the process that has the lock of the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llamesh.disk_space import RESERVE_BYTES, disk_space
from llamesh.file_holds import RemovalLock
from llamesh.kit.logs import log
from llamesh.kit.objects.parted_file import occupied_bytes
from llamesh.kit.objects.store import StoreFullError

MIN_KEPT_SECONDS = 600.0
"""Seconds for which a file stays after its last use. A start that waits longer for memory may have to fetch its model again."""
MAX_FREE_BYTES = 1 << 30
"""Most bytes of the disk that the cache leaves free; it leaves a twentieth of a small disk, but never less than RESERVE_BYTES."""


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file of the cache: its path, its size in bytes, and the time of its last use in seconds since 1970."""

    path: Path
    size: int
    used: float
    linked: bool
    """Whether the file has another name, such as in the folder of a Quant job: its removal would free nothing."""


class CacheEviction:
    """Limits the cache in `directory` to `limit` bytes (0: only by the disk). `clock`: seconds since 1970.

    The cached files are in the folders of `directory` other than `staging`. All methods block.
    """

    def __init__(self, directory: Path, staging: Path, limit: int, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._staging = staging
        self._limit = limit
        self._clock = clock

    @contextlib.contextmanager
    def reserved(self, size: int) -> Iterator[None]:
        """Make room for `size` bytes. The caller creates its staged file inside, which reserves them. Raises StoreFullError and OSError."""
        # A person may have removed the whole cache.
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o750)
        with self._lock():
            self._make(size)
            yield

    def files(self) -> list[CachedFile]:
        """Return the cached files, the least recently used first."""
        found = []
        for folder in self._directory.iterdir() if self._directory.is_dir() else ():
            if folder == self._staging or not folder.is_dir():
                continue
            for path in folder.iterdir():
                with contextlib.suppress(OSError):
                    about = path.stat(follow_symlinks=False)
                    found.append(CachedFile(path, about.st_size, about.st_atime, about.st_nlink > 1))
        return sorted(found, key=lambda file: (file.used, file.path))

    def _make(self, size: int) -> None:
        files = self.files()
        needed = self._excess(size, files)
        if needed <= 0:
            return
        with contextlib.ExitStack() as stack:
            locks = []
            for file in files:
                if needed <= 0:
                    break
                recent = self._clock() - file.used < MIN_KEPT_SECONDS
                lock = None if recent or file.linked else RemovalLock.of(file.path)
                if lock is not None:
                    stack.callback(lock.end)
                    locks.append(lock)
                    needed -= file.size
            if needed > 0:
                raise StoreFullError(
                    f"the model cache of this machine has no room for {size} bytes: {needed} bytes are missing, and all other files are in"
                    f" use or were used in the last {MIN_KEPT_SECONDS / 60:.0f} minutes; stop servers, free space on the disk, or raise"
                    " LLAMESH_CACHE_BYTES"
                )
            for lock in locks:
                log.info("a model is removed from the cache of this machine", path=str(lock.path))
                lock.remove()

    def _excess(self, size: int, files: list[CachedFile]) -> int:
        """Return how many bytes must be removed before `size` bytes fit."""
        staged = list(self._staged())
        space = disk_space(self._directory)
        unwritten = sum(each.st_size - occupied_bytes(each) for each in staged)
        left_free = max(RESERVE_BYTES, min(MAX_FREE_BYTES, space.total // 20))
        on_disk = size + unwritten + left_free - space.free
        if not self._limit:
            return on_disk
        occupied = sum(file.size for file in files) + sum(each.st_size for each in staged)
        return max(on_disk, occupied + size - self._limit)

    def _staged(self) -> Iterator[os.stat_result]:
        """Yield what the system says of the staged files. One may be published or removed meanwhile: that needs no lock of the cache."""
        for path in self._staging.iterdir():
            with contextlib.suppress(FileNotFoundError):
                yield path.stat()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)
