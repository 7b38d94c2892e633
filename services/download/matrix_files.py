"""Files of importance matrices for the Quant service: finds and reads them by the rules for files of this machine.

Invariant: only files below the folders that models may be imported from are read, and at most MAX_MATRIX_BYTES of one. The Quant service
checks whether a file is a matrix, and shows none of its bytes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from llamesh.file_limits import MAX_MATRIX_BYTES
from llamesh.v1.checkpoint_pb2 import MatrixFile
from services.download.bandwidth import Bandwidth
from services.download.sources import FileSource, SourceChangedError, SourceObject, SourceRefusedError
from services.download.sources.addresses import refuse_user


class MatrixFiles:
    """Reads importance matrices from folders."""

    def __init__(self, files: FileSource, bandwidth: Bandwidth) -> None:
        self._files = files
        self._bandwidth = bandwidth

    async def find(self, source: str) -> MatrixFile:
        """Return the file at an address as it is now. Raises SourceError."""
        async with self._opened(source) as found:
            return MatrixFile(name=found.name, size_bytes=found.size or 0, version=found.etag)

    async def read(self, source: str, version: str) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a file. Raises SourceError; SourceChangedError if it has another version."""
        async with self._opened(source) as found:
            if version != found.etag:
                words = f"{found.name} was changed since the job was submitted or retried"
                raise SourceChangedError(words, opened=version, found=found.etag)
            async with aclosing(self._bandwidth.limited(found).chunks) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk

    @asynccontextmanager
    async def _opened(self, source: str) -> AsyncIterator[SourceObject]:
        refuse_user(source)
        if not source.startswith("file:"):
            words = "not the address of an importance matrix: give a file, file:///FOLDER/MATRIX"
            raise SourceRefusedError(words, rule="scheme")
        async with self._files.open(source) as found:
            if not 0 < (found.size or 0) <= MAX_MATRIX_BYTES:
                words = f"{found.name} has {found.size} bytes, an importance matrix has 1 to {MAX_MATRIX_BYTES}"
                raise SourceRefusedError(words, rule="size")
            yield found
