"""A seekable file over an object of S3, for code that reads files and blocks: each read is one ranged request."""

from __future__ import annotations

import io

from llamesh.kit.objects.parted_upload import Bucket


class ObjectReader(io.RawIOBase):
    """A seekable file over one object; each read is one ranged request."""

    def __init__(self, bucket: Bucket, name: str, size: int) -> None:
        self._bucket = bucket
        self._name = name
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """Always true."""
        return True

    def seekable(self) -> bool:
        """Always true."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; nothing is requested."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Request the next bytes into a buffer."""
        length = min(len(buffer), self._size - self._position)
        if length <= 0:
            return 0
        bucket = self._bucket
        with bucket.errors(f"cannot read {self._name}"):
            response = bucket.client.get_object(bucket.name, self._name, offset=self._position, length=length)
            try:
                data = response.read()
            finally:
                response.close()
                response.release_conn()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
