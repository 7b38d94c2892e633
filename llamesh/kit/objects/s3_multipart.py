"""The calls of S3 for multipart uploads.

The client has them, but only its own parallel upload, which cannot be resumed, is part of its public interface; these methods begin with an
underscore. Invariant: no other module uses them, so a release of the client that renames one changes this file only. All calls block.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import cast

from minio import Minio
from minio.commonconfig import CopySource
from minio.datatypes import Part
from minio.error import S3Error

from llamesh.kit.objects.parts import ObjectOrigin

MAX_PARTS = 9_000
"""Maximum number of parts of an upload here; S3 allows 10,000."""


class Multipart:
    """Multipart uploads to one bucket."""

    def __init__(self, client: Minio, long: Minio, bucket: str) -> None:
        """`long` is the client for requests that the server may work on for minutes (`s3_clients`)."""
        self._client = client
        self._long = long
        self._bucket = bucket

    def create(self, name: str) -> str:
        """Begin an upload and return its id."""
        return str(self._client._create_multipart_upload(self._bucket, name, {}))

    def put(self, name: str, upload: str, number: int, data: bytearray) -> str:
        """Upload a part and return its ETag."""
        # The client only hashes and sends the buffer, and takes any; a copy would double the memory.
        body = cast("bytes", data)
        return str(self._client._upload_part(self._bucket, name, body, None, upload, number))

    def copy(self, name: str, upload: str, number: int, origin: ObjectOrigin, offset: int, length: int) -> str:
        """Make bytes of another object of the server a part, if it has its ETag, and return the ETag of the part."""
        source = CopySource(origin.bucket, origin.key, match_etag=origin.etag)
        span = {"x-amz-copy-source-range": f"bytes={offset}-{offset + length - 1}"}
        tag, _ = self._long._upload_part_copy(self._bucket, name, upload, number, {**source.gen_copy_headers(), **span})
        return str(tag)

    def parts(self, name: str, upload: str) -> list[Part]:
        """Return the parts that the server has."""
        found: list[Part] = []
        after: str | None = None
        listed = True
        while listed:
            page = self._client._list_parts(self._bucket, name, upload, part_number_marker=after)
            found += page.parts
            after = page.next_part_number_marker
            listed = page.is_truncated and bool(after)
        return found

    def last_write(self, name: str, upload: str, begun: datetime) -> datetime:
        """Return the time of the last part, or of the begin of an upload without parts."""
        try:
            return max([begun, *(part.last_modified for part in self.parts(name, upload) if part.last_modified)])
        except S3Error as error:
            if error.code != "NoSuchUpload":
                raise
            return begun

    def complete(self, name: str, upload: str, tags: Mapping[int, str]) -> None:
        """Make the parts an object."""
        parts = [Part(number, tags[number]) for number in sorted(tags)]
        self._long._complete_multipart_upload(self._bucket, name, upload, parts)

    def abort(self, name: str, upload: str) -> None:
        """Remove an upload and its parts. Idempotent."""
        try:
            self._client._abort_multipart_upload(self._bucket, name, upload)
        except S3Error as error:
            if error.code != "NoSuchUpload":
                raise

    def uploads(self, prefix: str) -> list[tuple[str, str, datetime | None]]:
        """Return name, id and time of the uploads of names with a prefix. MinIO finds an upload only by its whole name."""
        found: list[tuple[str, str, datetime | None]] = []
        name: str | None = None
        upload: str | None = None
        listed = True
        while listed:
            page = self._client._list_multipart_uploads(
                self._bucket, prefix=prefix, key_marker=name, upload_id_marker=upload
            )
            found += [(each.object_name, each.upload_id or "", each.initiated_time) for each in page.uploads]
            name, upload = page.next_key_marker, page.next_upload_id_marker
            listed = page.is_truncated and bool(name)
        return found
