"""Looks at the first bytes of an opened object, for a source that does not know without them what the object is.

Invariant: the object that is returned still yields all its bytes, and no request is made: the bytes come from the answer that opened it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from llamesh.kit.gguf import MAGIC
from services.download.sources.source import SourceObject, SourceRefusedError


async def with_magic(found: SourceObject, refusal: str) -> SourceObject:
    """Return an object that begins like a GGUF file. Raises SourceRefusedError with these words if it does not."""
    start = b""
    async for chunk in found.chunks:
        start += chunk
        if len(start) >= len(MAGIC):
            break
    if not start.startswith(MAGIC):
        raise SourceRefusedError(refusal, rule="format")
    return replace(found, chunks=_after(start, found.chunks))


async def _after(start: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield start
    async for chunk in rest:
        yield chunk
