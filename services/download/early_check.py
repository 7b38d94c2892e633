"""Checks the header of a GGUF file before the rest of its bytes is read, so that a file that is refused costs megabytes.

Invariant: this check only refuses earlier; `verification.verify` checks everything again when all bytes are staged. If the source does not
give the size of the file, only that check finds that tensors are missing or that bytes follow them. Memory: the bytes up to the end of the
header, at most MAX_HEADER_BYTES, until they are passed on; a file with a larger header is checked at the end only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import BinaryIO, cast

from llamesh.kit.gguf import MAGIC, GgufError, read_tensors
from services.download.model_parts import Header

MAX_HEADER_BYTES = 64 << 20
Check = Callable[[Header], None]
"""Raises an error if a file with this header is refused."""
Take = Callable[[int], Awaitable[None]]
"""Awaited before a number of bytes is written. Raises an error if they have no room."""
_FIRST_TRY = 1 << 20
"""Number of bytes after which the header is read for the first time; each further attempt has twice as many."""


async def checked_chunks(
    chunks: AsyncIterator[bytes],
    size: int | None,
    count: Callable[[int], None],
    check: Check,
    take: Take,
) -> AsyncIterator[bytes]:
    """Pass on and count the chunks of a file of `size` bytes (None: unknown). None is passed on before the header is checked.

    Raises GgufError, the errors of `check` about the header and those of `take`, which gets the length of each chunk.
    """
    early = _EarlyCheck(size, check)
    checked = False
    async for chunk in chunks:
        count(len(chunk))
        if checked:
            await take(len(chunk))
            yield chunk
        elif await early.done_with(chunk):
            checked = True
            for part in early.held():
                await take(len(part))
                yield part
    if not checked:
        # A short file of unknown size, or one that ends in its header: the check of the whole refuses that.
        for part in early.held():
            await take(len(part))
            yield part


async def check_header(read: Callable[[int, int], AsyncIterator[bytes]], size: int, check: Check) -> None:
    """Read and check the header of a file of `size` bytes. `read` returns a range. Raises GgufError and the errors of `check`."""
    early = _EarlyCheck(size, check)
    offset, length = 0, _FIRST_TRY
    while offset < min(size, MAX_HEADER_BYTES):
        async for chunk in read(offset, min(length, size - offset)):
            if await early.done_with(chunk):
                return
        offset += length
        # As many bytes again as there are: the check is repeated after twice as many.
        length = offset


async def read_header(chunks: AsyncIterator[bytes], size: int | None) -> Header | None:
    """Read the header of a file of `size` bytes from its first chunks. None if it is larger than MAX_HEADER_BYTES. Raises GgufError."""
    found: list[Header] = []
    early = _EarlyCheck(size, found.append)
    async for chunk in chunks:
        if await early.done_with(chunk):
            break
    return found[0] if found else None


class _EarlyCheck:
    """The first bytes of a file, until its header has been checked."""

    def __init__(self, size: int | None, check: Check) -> None:
        self._size = size
        self._check = check
        self._beginning = bytearray()
        self._next_try = _FIRST_TRY

    async def done_with(self, chunk: bytes) -> bool:
        """Return whether the check is done after one more chunk. Raises GgufError and the errors of `check`."""
        self._beginning += chunk
        start = bytes(self._beginning[: len(MAGIC)])
        if not MAGIC.startswith(start):
            raise GgufError(f"not a GGUF file: it starts with {start!r}", offset=0, what="header")
        wanted = self._next_try if self._size is None else min(self._next_try, self._size)
        if len(self._beginning) < wanted:
            return False
        try:
            header = await asyncio.to_thread(self._read)
        except _MoreNeededError:
            self._next_try *= 2
            return self._next_try > MAX_HEADER_BYTES
        self._check(header)
        return True

    def held(self) -> Iterator[bytes]:
        """Yield all bytes so far, in blocks, and keep none of them after that."""
        beginning, self._beginning = self._beginning, bytearray()
        for start in range(0, len(beginning), _FIRST_TRY):
            yield bytes(beginning[start : start + _FIRST_TRY])

    def _read(self) -> Header:
        return Header(*read_tensors(cast("BinaryIO", _Beginning(self._beginning, self._size)), self._size))


class _MoreNeededError(Exception):
    """The header continues after the bytes that have arrived."""


class _Beginning:
    """The first bytes of a file of `size` bytes (None: unknown), as a seekable file."""

    def __init__(self, data: bytearray, size: int | None) -> None:
        self._data = data
        self._size = size
        self._at = 0

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, length: int) -> bytes:
        found = bytes(self._data[self._at : self._at + length])
        if length and not found and (self._size is None or self._at < self._size):
            raise _MoreNeededError
        self._at += len(found)
        return found
