"""An object of S3 that this process writes in parts: a multipart upload, see `s3_parts`.

A part is in memory from its first byte until it is hashed; parts are hashed in order, so a writer waits for the parts before its own before
it begins another. S3 returns no parts of an upload that is not complete: an upload that is opened again is hashed when it is complete, by
reading the object once from the store.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Protocol, TypeVar

from minio import Minio
from minio.error import S3Error

from llamesh.kit.completion import to_completion
from llamesh.kit.logs import log
from llamesh.kit.objects.parts import ObjectOrigin, PartLayout
from llamesh.kit.objects.s3_errors import S3Errors
from llamesh.kit.objects.s3_multipart import Multipart
from llamesh.kit.objects.store import (
    ObjectChangedError,
    StagedObject,
    StoreError,
    StoreUnavailableError,
    is_key,
)

T = TypeVar("T")


class Bucket(Protocol):
    """What this module needs of the store."""

    name: str
    client: Minio
    long: Minio
    errors: S3Errors

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run a blocking call in the threads of the store."""

    def read_object(self, path: str) -> AsyncIterator[bytes]:
        """Yield the bytes of an object; ObjectNotFoundError."""

    def serves(self, origin: ObjectOrigin) -> bool:
        """Return whether the server of the bucket has an object, and the credentials of the bucket read it."""

    def staged(self, path: str, size: int, sha256: str) -> StagedObject:
        """Return a complete object: a staged one, or one that is under its key already."""


class PartedUpload:
    """See PartedObject. `upload` is empty if the upload is complete."""

    def __init__(
        self, bucket: Bucket, multipart: Multipart, path: str, upload: str, layout: PartLayout, done: dict[int, str]
    ) -> None:
        self.layout = layout
        self.done = done
        self.key = path if is_key(path) else ""
        self._bucket = bucket
        self._multipart = multipart
        self._path = path
        self._upload = upload
        self._hash = hashlib.sha256()
        self._on_the_way = not done
        """Whether the parts are hashed as they come; not if a part is in the store only."""
        self._copies = True
        """Whether parts may be copied; not once the server has refused it."""
        self._hashed = 0
        self._turn = asyncio.Condition()
        self._data: dict[int, bytearray] = {}
        """Parts that are not hashed yet."""
        self._free: list[bytearray] = []
        """Memory of whole parts, used again: the kernel clears new memory page by page."""

    async def write(self, number: int, chunks: AsyncIterator[bytes]) -> str:
        """See PartedObject."""
        _, length = self.layout.span(number)
        data, size = self._memory(length), 0
        async for chunk in chunks:
            if size + len(chunk) > length:
                raise StoreError(f"part {number} has more than {length} bytes")
            data[size : size + len(chunk)] = chunk
            size += len(chunk)
        if size != length:
            raise StoreError(f"part {number} has {size} bytes instead of {length}")
        with self._bucket.errors("cannot write to the object store"):
            tag = await to_completion(self._bucket.run(self._multipart.put, self._path, self._upload, number, data))
        self._data[number] = data
        self.done[number] = tag
        return tag

    async def copy(self, number: int, origin: ObjectOrigin) -> str | None:
        """See PartedObject."""
        if not self._copies or not self._bucket.serves(origin):
            return None
        copied = self._bucket.run(
            self._multipart.copy, self._path, self._upload, number, origin, *self.layout.span(number)
        )
        try:
            with self._bucket.errors("cannot copy inside the object store"):
                tag = await to_completion(copied)
        except StoreError as error:
            refusal = error.__cause__
            if not isinstance(refusal, S3Error):
                raise
            if refusal.code == "PreconditionFailed":
                raise ObjectChangedError(f"{origin.key} changed while it was copied") from refusal
            # Reading and writing names what is wrong, or works.
            log.warning("the server copies no part", name=self._path, code=refusal.code)
            self._copies = False
            return None
        self.done[number] = tag
        async with self._turn:
            self._on_the_way = False
            self._turn.notify_all()
        return tag

    async def written(self, number: int) -> None:
        """See PartedObject."""
        data = self._data.pop(number, None)
        async with self._turn:
            await self._turn.wait_for(lambda: self._hashed == number - 1 or not self._on_the_way)
            if data is None or not self._on_the_way:
                return
            await to_completion(asyncio.to_thread(self._hash.update, data))
            self._hashed = number
            self._turn.notify_all()
        if len(data) == self.layout.part_size:
            self._free.append(data)

    def _memory(self, length: int) -> bytearray:
        whole = length == self.layout.part_size
        return self._free.pop() if whole and self._free else bytearray(length)

    def digest_on_the_way(self) -> str:
        """See PartedObject."""
        return self._hash.hexdigest() if self._hashed == self.layout.count else ""

    async def finish(self) -> StagedObject:
        """See PartedObject."""
        missing = len(list(self.layout.missing(self.done)))
        if missing:
            raise StoreError(f"{missing} of {self.layout.count} parts are not written")
        if self._upload:
            with self._bucket.errors("cannot complete an upload"):
                await to_completion(
                    self._bucket.run(self._multipart.complete, self._path, self._upload, dict(self.done))
                )
        if self._hashed != self.layout.count:
            self._hash, size = hashlib.sha256(), 0
            async for block in self._bucket.read_object(self._path):
                await asyncio.to_thread(self._hash.update, block)
                size += len(block)
            if size != self.layout.size:
                raise StoreUnavailableError(f"the staged object has {size} bytes instead of {self.layout.size}")
        return _KeptObject(self._bucket.staged(self._path, self.layout.size, self._hash.hexdigest()))

    async def close(self) -> None:
        """See PartedObject."""
        self._data.clear()
        self._free.clear()


class _KeptObject:
    """A complete object whose bytes stay when it is discarded: a later run, or a record, may need them."""

    def __init__(self, staged: StagedObject) -> None:
        self.key = staged.key
        self.size = staged.size
        self.sha256 = staged.sha256
        self.open = staged.open
        self.publish = staged.publish

    async def discard(self) -> None:
        """Leave the bytes to `S3Parts.remove`, and those under their key to the caller."""
