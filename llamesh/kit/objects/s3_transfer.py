"""The two directions of bytes between the event loop and the blocking S3 client.

`Upload` lets the client's thread read an asynchronous iterator; `ObjectReader` gives a seekable file whose reads are ranged requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator

from llamesh.kit.objects.parted_upload import Bucket
from llamesh.kit.objects.store import StoreError


class Upload:
    """A file whose blocking `read`, called by the uploading thread, takes its bytes from an asynchronous iterator on the event loop."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._chunks = chunks
        self._loop = loop
        self._left = b""
        self.hash = hashlib.sha256()
        """Hash of all bytes read so far."""
        self._pulling: asyncio.Task[bytes] | None = None
        self._aborted = False
        self.size = 0

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes, fewer only at the end. Raises the errors of the iterator."""
        parts = [self._left]
        have = len(self._left)
        while have < size:
            block = asyncio.run_coroutine_threadsafe(self._next(), self._loop).result()
            if not block:
                break
            self.hash.update(block)
            self.size += len(block)
            parts.append(block)
            have += len(block)
        data = b"".join(parts)
        self._left = data[size:]
        return data[:size]

    async def _next(self) -> bytes:
        # Runs on the event loop as `abort` does, so that they cannot run at the same time.
        if self._aborted:
            raise StoreError("the upload was cancelled")
        self._pulling = asyncio.current_task()
        return await anext(self._chunks, b"")

    def abort(self) -> None:
        """Make the `read` that waits, and every later one, fail."""
        self._aborted = True
        if self._pulling is not None:
            self._pulling.cancel()


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
