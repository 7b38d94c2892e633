"""Objects of S3 that are written in parts: multipart uploads.

The server says which parts it has (ListParts), so a part that was uploaded and not recorded is not sent again. A part is in memory from
its first byte until it is hashed; parts are hashed in order, so a writer waits for the parts before its own before it begins another. S3
returns no parts of an upload that is not complete: an upload that is opened again is hashed when it is complete, by reading the staged
object once from the store.

An upload is invisible until it is complete. So an object whose key is known is uploaded under it, and no copy has to publish it; a copy
makes the server read and write all bytes once more.

Invariant: the object is complete or absent. A process that dies around the completion leaves one of the two, and `open` finds out which.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import BinaryIO, Protocol, TypeVar

from minio import Minio
from minio.error import S3Error

from llamesh.kit.completion import to_completion
from llamesh.kit.logs import log
from llamesh.kit.objects.parts import SUFFIX, ObjectOrigin, PartLayout
from llamesh.kit.objects.s3_errors import s3_errors
from llamesh.kit.objects.s3_multipart import Multipart
from llamesh.kit.objects.store import (
    ObjectChangedError,
    ObjectInfo,
    ObjectNotFoundError,
    StagedObject,
    StoreError,
    StoreUnavailableError,
    is_key,
)

MIN_PART_BYTES = 5 << 20
"""Minimum size of a part in S3; the last part may be smaller."""
MAX_PARTS = 9_000
"""S3 allows 10,000."""
ABANDONED = timedelta(days=7)
"""Age after which an upload without a record is removed. Another mesh with a database of its own may use the bucket."""

T = TypeVar("T")


class Bucket(Protocol):
    """What this module needs of the store."""

    name: str
    client: Minio

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run a blocking call in the threads of the store."""

    def read_object(self, path: str) -> AsyncIterator[bytes]:
        """Yield the bytes of an object; ObjectNotFoundError."""

    def serves(self, origin: ObjectOrigin) -> bool:
        """Return whether the server of the bucket has an object, and the credentials of the bucket read it."""

    def staged(self, path: str, size: int, sha256: str) -> StagedObject:
        """Return a complete staged object."""

    async def stat(self, key: str) -> ObjectInfo:
        """Return what the server says of an object; ObjectNotFoundError."""

    def open(self, key: str) -> BinaryIO:
        """Open a seekable reader of an object."""


class S3Parts:
    """The multipart uploads of a bucket: those with a token for their name are below `prefix`. `clock` returns the time in UTC."""

    in_place = True

    def __init__(self, bucket: Bucket, prefix: str, clock: Callable[[], datetime]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._clock = clock
        self._multipart = Multipart(bucket.client, bucket.name)

    def layout(self, size: int, part_size: int) -> PartLayout:
        """See PartedObjects."""
        return PartLayout(size, max(part_size, MIN_PART_BYTES, -(-size // MAX_PARTS)))

    async def create(self, name: str, layout: PartLayout) -> str:
        """See PartedObjects."""
        with s3_errors("cannot write to the object store"):
            return await to_completion(self._bucket.run(self._multipart.create, self._path(name)))

    async def open(self, name: str, upload: str, layout: PartLayout, recorded: Mapping[int, str]) -> _PartedUpload:
        """See PartedObjects."""
        path = self._path(name)
        try:
            with s3_errors("cannot read the parts of an upload"):
                parts = await self._bucket.run(self._multipart.parts, path, upload)
        except ObjectNotFoundError:
            with s3_errors("the upload is gone"):
                found = await self._bucket.run(self._bucket.client.stat_object, self._bucket.name, path)
            if found.size != layout.size:
                raise
            return _PartedUpload(self._bucket, self._multipart, path, "", layout, dict.fromkeys(layout.missing({}), ""))
        done = {
            part.part_number: part.etag
            for part in parts
            if part.part_number <= layout.count
            and part.size == layout.span(part.part_number)[1]
            and part.etag == recorded.get(part.part_number, part.etag)
        }
        return _PartedUpload(self._bucket, self._multipart, path, upload, layout, done)

    async def occupied(self, name: str, layout: PartLayout, recorded: Mapping[int, str]) -> int:
        """See PartedObjects. A bucket does not say how much room it has, so the recorded parts are enough."""
        return layout.bytes_of(recorded)

    async def remove(self, name: str, upload: str) -> None:
        """See PartedObjects."""
        with s3_errors("cannot remove a staged object"):
            await to_completion(self._bucket.run(self._remove, self._path(name), upload))

    def _remove(self, path: str, upload: str) -> None:
        # A process that died just after the creation has not recorded the id.
        for each in [upload] if upload else [found for _, found, _ in self._multipart.uploads(path)]:
            self._multipart.abort(path, each)
        if not is_key(path):
            self._bucket.client.remove_object(self._bucket.name, path)

    async def found(self) -> Sequence[tuple[str, str]]:
        """See PartedObjects."""
        with s3_errors("cannot list uploads"):
            return await self._bucket.run(self._abandoned)

    def _abandoned(self) -> list[tuple[str, str]]:
        entries = self._multipart.uploads("")
        for entry in self._bucket.client.list_objects(self._bucket.name, prefix=self._prefix, recursive=True):
            entries.append((entry.object_name or "", "", entry.last_modified))
        before = self._clock() - ABANDONED
        return [
            (path.removeprefix(self._prefix).removesuffix(SUFFIX), upload)
            for path, upload, since in entries
            if (path.startswith(self._prefix) and path.endswith(SUFFIX)) or is_key(path)
            if since is not None and since < before
        ]

    def _path(self, name: str) -> str:
        return name if is_key(name) else f"{self._prefix}{name}{SUFFIX}"


class _PartedUpload:
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

    async def write(self, number: int, chunks: AsyncIterator[bytes]) -> str:
        _, length = self.layout.span(number)
        data, size = bytearray(length), 0
        async for chunk in chunks:
            data[size : size + len(chunk)] = chunk
            size += len(chunk)
        if size != length:
            raise StoreError(f"part {number} has {size} bytes instead of {length}")
        with s3_errors("cannot write to the object store"):
            tag = await to_completion(self._bucket.run(self._multipart.put, self._path, self._upload, number, data))
        self._data[number] = data
        self.done[number] = tag
        return tag

    async def copy(self, number: int, origin: ObjectOrigin) -> str | None:
        if not self._copies or not self._bucket.serves(origin):
            return None
        copied = self._bucket.run(
            self._multipart.copy, self._path, self._upload, number, origin, *self.layout.span(number)
        )
        try:
            with s3_errors("cannot copy inside the object store"):
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
        data = self._data.pop(number, None)
        async with self._turn:
            await self._turn.wait_for(lambda: self._hashed == number - 1 or not self._on_the_way)
            if data is None or not self._on_the_way:
                return
            await to_completion(asyncio.to_thread(self._hash.update, data))
            self._hashed = number
            self._turn.notify_all()

    def digest_on_the_way(self) -> str:
        return self._hash.hexdigest() if self._hashed == self.layout.count else ""

    async def finish(self) -> StagedObject:
        missing = len(list(self.layout.missing(self.done)))
        if missing:
            raise StoreError(f"{missing} of {self.layout.count} parts are not written")
        if self._upload:
            with s3_errors("cannot complete an upload"):
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
        if self.key:
            return await self._in_place()
        return _KeptObject(self._bucket.staged(self._path, self.layout.size, self._hash.hexdigest()))

    async def _in_place(self) -> StagedObject:
        found = await self._bucket.stat(self.key)
        if found.size != self.layout.size:
            raise StoreUnavailableError(f"{self.key} has {found.size} bytes instead of {self.layout.size}")
        return _ObjectInPlace(self._bucket, found, self._hash.hexdigest())

    async def close(self) -> None:
        self._data.clear()


class _KeptObject:
    """A staged object whose bytes stay when it is discarded."""

    key = ""

    def __init__(self, staged: StagedObject) -> None:
        self.size = staged.size
        self.sha256 = staged.sha256
        self.open = staged.open
        self.publish = staged.publish

    async def discard(self) -> None:
        """Leave the bytes to `S3Parts.remove`."""


class _ObjectInPlace:
    """A complete object under its key."""

    def __init__(self, bucket: Bucket, found: ObjectInfo, sha256: str) -> None:
        self.key = found.key
        self.size = found.size
        self.sha256 = sha256
        self._bucket = bucket
        self._found = found

    def open(self) -> BinaryIO:
        return self._bucket.open(self.key)

    async def publish(self, key: str) -> ObjectInfo:
        """Nothing is left to do."""
        if key != self.key:
            raise StoreError(f"{self.key} cannot be published as {key}")
        return self._found

    async def discard(self) -> None:
        """Leave the bytes to the caller, who knows whether they have a record."""
