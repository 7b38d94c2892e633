"""Objects of S3 that are written in parts: multipart uploads.

The server says which parts it has (ListParts), so a part that was uploaded and not recorded is not sent again.

An upload is invisible until it is complete. So an object whose key is known is uploaded under it, and no copy has to publish it; a copy
makes the server read and write all bytes once more.

Invariant: the object is complete or absent. A process that dies around the completion leaves one of the two, and `open` finds out which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from llamesh.kit.completion import to_completion
from llamesh.kit.objects.parted_upload import Bucket, PartedUpload
from llamesh.kit.objects.parts import SUFFIX, PartLayout
from llamesh.kit.objects.s3_multipart import MAX_PARTS, Multipart
from llamesh.kit.objects.store import ObjectNotFoundError, is_key

MIN_PART_BYTES = 5 << 20
"""Minimum size of a part in S3; the last part may be smaller."""


class S3Parts:
    """The multipart uploads of a bucket: those with a token for their name are below `prefix`. `clock` returns the time in UTC.

    `kept`: time after the last part for which another mesh may still need an upload.
    """

    in_place = True

    def __init__(self, bucket: Bucket, prefix: str, clock: Callable[[], datetime], kept: timedelta) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._clock = clock
        self._kept = kept
        self._multipart = Multipart(bucket.client, bucket.long, bucket.name)

    def layout(self, size: int, part_size: int) -> PartLayout:
        """See PartedObjects."""
        return PartLayout(size, max(part_size, MIN_PART_BYTES, -(-size // MAX_PARTS)))

    async def create(self, name: str, layout: PartLayout) -> str:
        """See PartedObjects."""
        with self._bucket.errors("cannot write to the object store"):
            return await to_completion(self._bucket.run(self._multipart.create, self._path(name)))

    async def open(self, name: str, upload: str, layout: PartLayout, recorded: Mapping[int, str]) -> PartedUpload:
        """See PartedObjects."""
        path = self._path(name)
        try:
            with self._bucket.errors("cannot read the parts of an upload"):
                parts = await self._bucket.run(self._multipart.parts, path, upload)
        except ObjectNotFoundError:
            with self._bucket.errors("the upload is gone"):
                found = await self._bucket.run(self._bucket.client.stat_object, self._bucket.name, path)
            if found.size != layout.size:
                raise
            return PartedUpload(self._bucket, self._multipart, path, "", layout, dict.fromkeys(layout.missing({}), ""))
        done = {
            part.part_number: part.etag
            for part in parts
            if part.part_number <= layout.count
            and part.size == layout.span(part.part_number)[1]
            and part.etag == recorded.get(part.part_number, part.etag)
        }
        return PartedUpload(self._bucket, self._multipart, path, upload, layout, done)

    async def occupied(self, name: str, layout: PartLayout, recorded: Mapping[int, str]) -> int:
        """See PartedObjects. A bucket does not say how much room it has, so the recorded parts are enough."""
        return layout.bytes_of(recorded)

    async def remove(self, name: str, upload: str) -> None:
        """See PartedObjects."""
        with self._bucket.errors("cannot remove a staged object"):
            await to_completion(self._bucket.run(self._remove, self._path(name), upload))

    def _remove(self, path: str, upload: str) -> None:
        # A process that died just after the creation has not recorded the id.
        for each in [upload] if upload else [found for _, found, _ in self._multipart.uploads(path)]:
            self._multipart.abort(path, each)
        if not is_key(path):
            self._bucket.client.remove_object(self._bucket.name, path)

    async def found(self) -> Sequence[tuple[str, str]]:
        """See PartedObjects."""
        with self._bucket.errors("cannot list uploads"):
            return await self._bucket.run(self._abandoned)

    def _abandoned(self) -> list[tuple[str, str]]:
        entries = self._multipart.uploads("")
        for entry in self._bucket.client.list_objects(self._bucket.name, prefix=self._prefix, recursive=True):
            entries.append((entry.object_name or "", "", entry.last_modified))
        before = self._clock() - self._kept
        return [
            (path.removeprefix(self._prefix).removesuffix(SUFFIX), upload)
            for path, upload, since in entries
            if (path.startswith(self._prefix) and path.endswith(SUFFIX)) or is_key(path)
            if since is not None and since < before
            if not upload or self._multipart.last_write(path, upload, since) < before
        ]

    def _path(self, name: str) -> str:
        return name if is_key(name) else f"{self._prefix}{name}{SUFFIX}"
