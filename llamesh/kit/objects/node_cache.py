"""A cache of remote objects on the disk of this node, for engines, which open files.

The name of a file is the SHA-256 of its bytes, so objects with the same bytes are one file. Several processes of a node may share the
directory: a fill holds the lock of its staged file, whose name is the digest, so a digest is filled once at a time, and whoever comes
meanwhile waits. A fill reads ranges at the same time, writes each at its offset, and hashes the bytes in order on the way. Before it
begins it makes room (`cache_eviction`), which may remove other files that nobody uses.

Invariant: a file appears under its name only after its SHA-256 was compared with the one in the key. A fill that dies leaves a staged file
without a lock, which the next fill of this digest takes over, or the next start removes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from llamesh.file_holds import RemovalLock, note_use
from llamesh.kit.completion import to_completion, together
from llamesh.kit.logs import log
from llamesh.kit.objects.cache_eviction import CacheEviction
from llamesh.kit.objects.directory_parts import FileInParts
from llamesh.kit.objects.parted_file import PartedFile, create_file
from llamesh.kit.objects.parts import SUFFIX, PartLayout
from llamesh.kit.objects.staging import store_errors, sweep
from llamesh.kit.objects.store import (
    ObjectBusyError,
    ObjectDamagedError,
    ObjectNotFoundError,
    StoreUnavailableError,
    checked_key,
    digest_of,
)

PART_BYTES = 16 << 20
"""Size of the ranges that a fill reads, in bytes."""
PARALLEL_READS = 4
"""Ranges that one fill reads at the same time. Each is written in blocks of one MiB, so a fill needs about this many MiB of memory."""
MAX_FILLS = 4
"""Maximum number of fills of one process at the same time."""
BUSY_SECONDS = 0.25
"""Seconds between two looks at a fill of another process."""

Read: TypeAlias = Callable[[str, int, int], AsyncIterator[bytes]]
"""Reads bytes of a remote object: its key, an offset and a length."""
SizeOf: TypeAlias = Callable[[str], Awaitable[int]]
"""Asks for the size of a remote object in bytes. Raises ObjectNotFoundError."""


class NodeCache:
    """Copies below `directory`, at most `limit` bytes (0: what the disk has room for). `clock`: seconds since 1970."""

    def __init__(
        self,
        directory: Path,
        read: Read,
        size_of: SizeOf,
        *,
        limit: int = 0,
        part_bytes: int = PART_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory.absolute()
        self._staging = self._directory / "staging"
        self._read = read
        self._size_of = size_of
        self._part_bytes = part_bytes
        self._clock = clock
        self._eviction = CacheEviction(self._directory, self._staging, limit, clock)
        self._fills: dict[Path, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_FILLS)

    def prepare(self) -> None:
        """Create the directory and remove what dead writers left behind. Blocks."""
        with store_errors("cannot use the model cache of this machine"):
            sweep(self._staging)
            for path in self._staging.glob(f"*{SUFFIX}"):
                lock = RemovalLock.of(path)
                if lock is not None:
                    lock.remove()
                    lock.end()

    async def path(self, key: str, size: int | None = None) -> Path:
        """Return the local copy of an object, filled now if it is missing or has another length than `size`.

        Concurrent callers share one fill. Raises ObjectDamagedError if the object has another size or another SHA-256 than its key says,
        StoreFullError if there is no room, and the errors of `read`.
        """
        target = self.place(key)
        present = await asyncio.to_thread(_size_on_disk, target)
        if present is not None and size in (None, present):
            await asyncio.to_thread(note_use, target, self._clock())
            return target
        if present is not None:
            log.warning("a local copy has the wrong length and is fetched again", path=str(target), bytes=present)
        fill = self._fills.get(target)
        if fill is None:
            fill = asyncio.create_task(self._fill(key, target, size))
            self._fills[target] = fill
            fill.add_done_callback(lambda _: self._fills.pop(target, None))
        await asyncio.shield(fill)
        return target

    def place(self, key: str) -> Path:
        """Return the path of the copy of an object, which may be missing. ValueError if the key is malformed."""
        kind = checked_key(key).partition("/")[0]
        return self._directory / kind / f"{digest_of(key)}{Path(key).suffix}"

    async def size(self) -> int:
        """Return the bytes of all copies."""
        with _local_errors("cannot read the model cache of this machine"):
            return sum(file.size for file in await asyncio.to_thread(self._eviction.files))

    async def close(self) -> None:
        """Cancel all fills."""
        for fill in list(self._fills.values()):
            fill.cancel()
        await asyncio.gather(*self._fills.values(), return_exceptions=True)

    async def _fill(self, key: str, target: Path, size: int | None) -> None:
        staged = self._staging / f"{target.name}{SUFFIX}"
        with _local_errors(f"cannot write {key} to the model cache of this machine"):
            async with self._slots:
                has = await self._size_of(key)
                if size not in (None, has):
                    raise ObjectDamagedError(f"{key} is damaged: it has {has} bytes instead of {size}")
                while await asyncio.to_thread(_size_on_disk, target) != has:
                    try:
                        file = await self._created(staged, has)
                    except ObjectBusyError:
                        await asyncio.sleep(BUSY_SECONDS)
                    else:
                        await self._write(key, file, target)

    async def _created(self, staged: Path, size: int) -> PartedFile:
        """Return the staged file of this digest, new or left by a dead writer, with its lock. Raises ObjectBusyError if it has a writer."""
        try:
            await to_completion(asyncio.to_thread(self._create, staged, size))
        except FileExistsError:
            log.debug("a staged file is there", path=str(staged))
        try:
            # Not in a thread: if this task were cancelled in the meantime, the file would not be closed.
            file = PartedFile(staged)
        except FileNotFoundError as error:
            raise ObjectBusyError(f"another process removed {staged.name}") from error
        if file.size != size:
            await to_completion(asyncio.to_thread(file.remove))
            raise ObjectBusyError(f"{staged.name} had another size")
        return file

    def _create(self, staged: Path, size: int) -> None:
        if staged.exists():
            return
        with self._eviction.reserved(size):
            create_file(staged, size)

    async def _write(self, key: str, file: PartedFile, target: Path) -> None:
        parted = FileInParts(file, PartLayout(file.size, self._part_bytes), {})
        numbers = parted.layout.missing({})

        async def work() -> None:
            for number in numbers:
                await parted.write(number, self._read(key, *parted.layout.span(number)))
                await parted.written(number)

        try:
            await together(work, PARALLEL_READS)
            sha256 = await parted.digest()
            if sha256 != digest_of(key):
                raise ObjectDamagedError(f"{key} is damaged: its bytes have SHA-256 {sha256}")
            await to_completion(asyncio.to_thread(file.publish, target))
            await asyncio.to_thread(note_use, target, self._clock())
        finally:
            await to_completion(asyncio.to_thread(file.remove))


@contextlib.contextmanager
def _local_errors(what: str) -> Iterator[None]:
    """Raise the operating system's errors as StoreErrors: a missing file of this disk does not mean that the remote object is missing."""
    try:
        with store_errors(what):
            yield
    except ObjectNotFoundError as error:
        if isinstance(error.__cause__, OSError):
            raise StoreUnavailableError(str(error)) from error
        raise


def _size_on_disk(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
