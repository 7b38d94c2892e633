"""Objects of a directory that are written in parts: a file of the final size in the staging area (`parted_file`).

A part counts as written when the caller has recorded it, because a file cannot tell which of its bytes were written. Its bytes are durable
before `write` returns. The hash is computed in order, from the file, as soon as all parts before a part are there: the bytes are read from
the page cache, and an object that is opened again is hashed from its beginning in the same way.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from llamesh.kit.completion import to_completion
from llamesh.kit.objects.parted_file import PartedFile, create_file, occupied_bytes
from llamesh.kit.objects.parts import SUFFIX, ObjectOrigin, PartLayout
from llamesh.kit.objects.staging import batches, store_errors
from llamesh.kit.objects.store import ObjectNotFoundError, StagedObject, StoreError, StoreFullError, StoreShortError

CheckRoom = Callable[[int], None]
"""Raises StoreFullError if the store has no room for a number of bytes."""

Staged = Callable[[PartedFile], StagedObject]
"""Returns a complete file as a staged object of the store."""


class DirectoryParts:
    """The objects in `staging`. `check_room` and `staged` are those of the store."""

    in_place = False
    """A hard link publishes a file."""

    def __init__(self, staging: Path, check_room: CheckRoom, staged: Staged) -> None:
        self._staging = staging
        self._check_room = check_room
        self._staged = staged

    def layout(self, size: int, part_size: int) -> PartLayout:
        """See PartedObjects. A file has no limits."""
        return PartLayout(size, part_size)

    async def create(self, name: str, layout: PartLayout) -> str:
        """See PartedObjects."""
        with store_errors("cannot write to the object store"):
            self._check_room(layout.size)
            await to_completion(asyncio.to_thread(create_file, self._path(name), layout.size))
        return ""

    async def open(self, name: str, upload: str, layout: PartLayout, recorded: Mapping[int, str]) -> _ObjectInParts:
        """See PartedObjects."""
        with store_errors("cannot write to the object store"):
            # Not in a thread: if this task were cancelled in the meantime, the file would not be closed.
            file = PartedFile(self._path(name))
        parted = _ObjectInParts(file, layout, dict(recorded), self._staged)
        try:
            if file.size != layout.size:
                raise ObjectNotFoundError(f"{name} has {file.size} bytes instead of {layout.size}")
            self._check_rest(layout.size, max(file.occupied, layout.bytes_of(recorded)))
        except BaseException:
            await parted.close()
            raise
        return parted

    async def occupied(self, name: str, layout: PartLayout, recorded: Mapping[int, str]) -> int:
        """See PartedObjects. The file is sparse, so a part that a killed writer has begun already has its blocks."""
        try:
            with store_errors("cannot look up a staged object"):
                found = self._path(name).stat()
        except ObjectNotFoundError:
            return 0
        # A file system that compresses has fewer blocks than bytes.
        return max(occupied_bytes(found), layout.bytes_of(recorded)) if found.st_size == layout.size else 0

    def _check_rest(self, size: int, occupied: int) -> None:
        try:
            self._check_room(size - occupied)
        except StoreFullError as error:
            if occupied:
                raise StoreShortError(str(error)) from error
            raise

    async def remove(self, name: str, upload: str) -> None:
        """See PartedObjects."""
        with store_errors("cannot remove a staged object"):
            self._path(name).unlink(missing_ok=True)

    async def found(self) -> Sequence[tuple[str, str]]:
        """See PartedObjects."""
        with store_errors("cannot use the folder of the object store"):
            return [(path.name.removesuffix(SUFFIX), "") for path in self._staging.glob(f"*{SUFFIX}")]

    def _path(self, name: str) -> Path:
        return self._staging / f"{name}{SUFFIX}"


class FileInParts:
    """A file that is written in parts and hashed in order; see PartedObject. `done` are the parts that it has."""

    def __init__(self, file: PartedFile, layout: PartLayout, done: dict[int, str]) -> None:
        self.layout = layout
        self.done = done
        self._file = file
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._hashing = False

    async def write(self, number: int, chunks: AsyncIterator[bytes]) -> str:
        """See PartedObject."""
        offset, length = self.layout.span(number)
        end = offset + length
        async for batch in batches(chunks):
            if offset + sum(map(len, batch)) > end:
                raise StoreError(f"part {number} has more than {length} bytes")
            with store_errors("cannot write to the object store"):
                offset = await to_completion(asyncio.to_thread(self._file.write, offset, batch))
        if offset != end:
            raise StoreError(f"part {number} ends at {offset} instead of {end}")
        with store_errors("cannot write to the object store"):
            await to_completion(asyncio.to_thread(self._file.sync))
        return ""

    async def copy(self, number: int, origin: ObjectOrigin) -> str | None:
        """See PartedObject. No server has this file."""
        return None

    async def written(self, number: int) -> None:
        """See PartedObject."""
        self.done[number] = ""
        await self._hash_on()

    async def _hash_on(self) -> None:
        """Hash all parts that are next in order, unless another call does so; that call then comes to the new part too."""
        if self._hashing:
            return
        self._hashing = True
        try:
            while self._hashed + 1 in self.done:
                span = self.layout.span(self._hashed + 1)
                with store_errors("cannot read a staged object"):
                    await to_completion(asyncio.to_thread(self._file.hash, self._hash, *span))
                self._hashed += 1
        finally:
            self._hashing = False

    async def digest(self) -> str:
        """Return the SHA-256 of all bytes in hex. Raises StoreError if parts are missing."""
        await self._hash_on()
        if self._hashed != self.layout.count:
            raise StoreError(f"only {self._hashed} of {self.layout.count} parts are written")
        return self._hash.hexdigest()

    async def close(self) -> None:
        """See PartedObject."""
        await to_completion(asyncio.to_thread(self._file.close))


class _ObjectInParts(FileInParts):
    """See PartedObject."""

    key = ""

    def __init__(self, file: PartedFile, layout: PartLayout, done: dict[int, str], staged: Staged) -> None:
        super().__init__(file, layout, done)
        self._staged = staged

    def digest_on_the_way(self) -> str:
        return ""

    async def finish(self) -> StagedObject:
        self._file.sha256 = await self.digest()
        return self._staged(self._file)
