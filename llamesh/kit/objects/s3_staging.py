"""Objects of S3 that are staged as one stream, and the removal of those whose writer is dead.

A small object is one request, a larger one a multipart upload. MinIO lists uploads by their whole name only. So an empty object, the
marker, is written under the name first: it is found by its prefix, and the upload by the name of the marker. The complete object replaces
the marker.

S3 cannot tell whether a writer lives. The name of an object begins with its writer, and at most one process at a time is that writer: what
has the writer's name and is not in the memory of this process was left by a dead predecessor. What others have left is removed by its age.

Invariant: an object that this process writes, or has not discarded, is not removed. A failure of `stage` leaves nothing that a sweep does
not find.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import secrets
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import TypeVar

from llamesh.kit.completion import to_completion
from llamesh.kit.logs import log, report_failure
from llamesh.kit.objects.parted_upload import Bucket
from llamesh.kit.objects.parts import SUFFIX
from llamesh.kit.objects.s3_multipart import MAX_PARTS, Multipart
from llamesh.kit.objects.staging import blocks
from llamesh.kit.objects.store import ObjectNotFoundError, StagedObject

T = TypeVar("T")

PART_BYTES = 16 << 20
"""Size of the parts of an upload, unless there would be more than MAX_PARTS."""


class S3Staging:
    """The staged objects of a bucket, below `prefix`. `clock` returns the time in UTC.

    `writer` identifies this process, and its predecessors that have ended; "" is nobody else. `kept`: time after its last write for which
    the object of another writer stays.
    """

    def __init__(
        self, bucket: Bucket, prefix: str, writer: str, clock: Callable[[], datetime], kept: timedelta
    ) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._own = self._begin_of(writer or secrets.token_hex(16))
        self._clock = clock
        self._kept = kept
        self._multipart = Multipart(bucket.client, bucket.long, bucket.name)
        self._live: set[str] = set()
        """Names of the objects that this process writes or has not discarded."""

    async def stage(self, chunks: AsyncIterator[bytes], expected_size: int | None) -> StagedObject:
        """See ObjectStore."""
        name = f"{self._own}{secrets.token_hex(16)}"
        part_size = max(PART_BYTES, (expected_size or 0) // MAX_PARTS)
        self._live.add(name)
        try:
            return await self._write(name, chunks, part_size)
        except BaseException:
            await to_completion(self._give_up(name))
            raise

    async def _write(self, name: str, chunks: AsyncIterator[bytes], part_size: int) -> StagedObject:
        digest, size = hashlib.sha256(), 0
        data, upload, tags = bytearray(), "", dict[int, str]()
        async for block in blocks(chunks):
            await asyncio.to_thread(digest.update, block)
            size += len(block)
            view = memoryview(block)
            while view:
                if len(data) == part_size:
                    upload = upload or await self._ask(self._begin, name)
                    number = len(tags) + 1
                    tags[number] = await self._ask(self._multipart.put, name, upload, number, data)
                    data.clear()
                room = part_size - len(data)
                data += view[:room]
                view = view[room:]
        if upload:
            number = len(tags) + 1
            tags[number] = await self._ask(self._multipart.put, name, upload, number, data)
            await self._ask(self._multipart.complete, name, upload, tags)
        else:
            await self._ask(self._put_whole, name, bytes(data), part_size)
        return self._bucket.staged(name, size, digest.hexdigest())

    async def _ask(self, call: Callable[..., T], *args: object) -> T:
        """Make a request. A cancellation waits for its end: what it writes later could not be removed."""
        with self._bucket.errors("cannot write to the object store"):
            return await to_completion(self._bucket.run(call, *args))

    def _begin(self, name: str) -> str:
        self._put_whole(name, b"", PART_BYTES)
        return self._multipart.create(name)

    def _put_whole(self, name: str, data: bytes, part_size: int) -> None:
        self._bucket.client.put_object(self._bucket.name, name, io.BytesIO(data), len(data), part_size=part_size)

    async def _give_up(self, name: str) -> None:
        try:
            await self._bucket.run(self._remove, name)
        except Exception as error:
            report_failure("remove staged bytes", error)
        finally:
            # If the removal failed, the next sweep finds a name that nobody uses.
            self._live.discard(name)

    async def discard(self, name: str) -> None:
        """Remove a complete object. Idempotent."""
        try:
            with self._bucket.errors("cannot remove a staged object"):
                await self._bucket.run(self._bucket.client.remove_object, self._bucket.name, name)
        finally:
            self._live.discard(name)

    async def sweep(self) -> None:
        """Remove what dead predecessors of this process have left, and what other writers have not written to for long."""
        await self._sweep(self._prefix, self._is_dead)

    async def remove_of(self, writer: str) -> None:
        """Remove what a writer has left. The caller knows that it has ended."""
        await self._sweep(self._begin_of(writer), lambda _name, _since: True)

    async def _sweep(self, prefix: str, is_dead: Callable[[str, datetime | None], bool]) -> None:
        try:
            with self._bucket.errors("cannot remove staged objects"):
                await self._bucket.run(self._remove_dead, prefix, is_dead)
        except ObjectNotFoundError:
            # Nobody has written to this bucket, or it was removed.
            return

    def _remove_dead(self, prefix: str, is_dead: Callable[[str, datetime | None], bool]) -> None:
        for entry in self._bucket.client.list_objects(self._bucket.name, prefix=prefix, recursive=True):
            name = entry.object_name or ""
            if not name.endswith(SUFFIX) and name not in self._live and is_dead(name, entry.last_modified):
                log.info("a staged object of a dead writer is removed", name=name)
                self._remove(name)

    def _is_dead(self, name: str, since: datetime | None) -> bool:
        if name.startswith(self._own):
            return True
        before = self._clock() - self._kept
        return (
            since is not None
            and since < before
            and all(self._multipart.last_write(*each, since) < before for each in self._uploads(name))
        )

    def _uploads(self, name: str) -> list[tuple[str, str]]:
        return [(found, upload) for found, upload, _ in self._multipart.uploads(name) if found == name]

    def _remove(self, name: str) -> None:
        # The marker goes last: if this process dies in between, the next sweep finds the uploads again.
        for _, upload in self._uploads(name):
            self._multipart.abort(name, upload)
        self._bucket.client.remove_object(self._bucket.name, name)

    def _begin_of(self, writer: str) -> str:
        return f"{self._prefix}{hashlib.sha256(writer.encode()).hexdigest()[:16]}-"
