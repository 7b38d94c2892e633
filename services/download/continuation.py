"""Continues a read that was interrupted, from the first missing byte, if the source can return ranges of the same object.

Invariant: the bytes are those of one object, in order, each once: a range is of the object that was opened, or an error (see `sources`).
Each continuation waits first, and the number of continuations is bounded (see `source_retries`); then the source's error ends the read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from llamesh.kit.logs import log
from services.download.source_retries import SourceRetries
from services.download.sources import SourceChangedError, SourceError, SourceObject, SourceSlowError
from services.download.sources.shown_texts import shown_text

MAX_CONTINUATIONS = 100
"""Maximum number of continuations of one read. A read that gets no new bytes between them fails earlier."""


def continued(found: SourceObject, clock: Callable[[], float]) -> AsyncGenerator[bytes, None]:
    """Yield all bytes of an opened source, from its stream. `clock` is monotonic, in seconds. Raises SourceError."""
    return _continued(found, clock, found.chunks, 0, found.size)


def continued_range(
    found: SourceObject, clock: Callable[[], float], offset: int, length: int
) -> AsyncGenerator[bytes, None]:
    """Yield `length` bytes from `offset` of a source that has ranges. Raises SourceError."""
    assert found.read is not None
    return _continued(found, clock, found.read(offset, length), offset, offset + length)


async def _continued(
    found: SourceObject, clock: Callable[[], float], chunks: AsyncIterator[bytes], start: int, end: int | None
) -> AsyncGenerator[bytes, None]:
    done, retries = start, SourceRetries(clock)
    # Bytes that come too slowly are no progress that would end a series of failures.
    slow = SourceRetries(clock)
    for _ in range(MAX_CONTINUATIONS):
        try:
            async for chunk in chunks:
                done += len(chunk)
                retries = SourceRetries(clock)
                yield chunk
        except SourceError as error:
            # The source has answered, so a connection that cannot be made is an interruption.
            interrupted = error.transient or error.unreachable
            if found.read is None or end is None or not interrupted or isinstance(error, SourceChangedError):
                raise
            wait = (slow if isinstance(error, SourceSlowError) else retries).next_wait(error.retry_after)
            if wait is None:
                raise
            log.warning("read is continued", name=found.name, offset=done, error=shown_text(str(error)), seconds=wait)
            await asyncio.sleep(wait)
            chunks = found.read(done, end - done)
        else:
            return
    raise SourceError(f"{found.name} was interrupted {MAX_CONTINUATIONS} times", transient=True)
