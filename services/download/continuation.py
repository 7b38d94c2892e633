"""Continues a stream that was interrupted, from the first missing byte, if the source can return ranges of the same object.

Invariant: the bytes are those of one object, in order, each once: a range is of the object that was opened, or an error (see `sources`).
Each continuation waits first, and the number of continuations is bounded (see `source_retries`); then the source's error ends the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from llamesh.kit.logs import log
from services.download.source_retries import SourceRetries
from services.download.sources import SourceChangedError, SourceError, SourceObject

MAX_CONTINUATIONS = 100
"""Maximum number of continuations of one stream. A stream that gets no new bytes between them fails earlier."""


async def continued(found: SourceObject, clock: Callable[[], float]) -> AsyncIterator[bytes]:
    """Yield all bytes of an opened source. `clock` is monotonic, in seconds. Raises SourceError."""
    done, chunks, retries = 0, found.chunks, SourceRetries(clock)
    for _ in range(MAX_CONTINUATIONS):
        try:
            async for chunk in chunks:
                done += len(chunk)
                retries = SourceRetries(clock)
                yield chunk
        except SourceError as error:
            if found.read is None or found.size is None or not error.transient or isinstance(error, SourceChangedError):
                raise
            wait = retries.next_wait(error.retry_after)
            if wait is None:
                raise
            log.warning("stream is continued", name=found.name, offset=done, error=str(error), seconds=wait)
            await asyncio.sleep(wait)
            chunks = found.read(done, found.size - done)
        else:
            return
    raise SourceError(f"{found.name} was interrupted {MAX_CONTINUATIONS} times", transient=True)
