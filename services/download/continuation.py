"""Continues a stream that breaks off, from the byte that is missing, if the source can return ranges of the same object.

Invariant: the bytes are those of one object in order, each once: a range is of the object that was opened, or an error (see `sources`).
Each continuation waits first, and their number is bounded (see `source_retries`); then the error of the source ends the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from llamesh.kit.logs import log
from services.download.source_retries import SourceRetries
from services.download.sources import SourceChangedError, SourceError, SourceObject

MOST_CONTINUATIONS = 100
"""Continuations of one stream in all. Without any new byte between them it is given up earlier."""


async def continued(found: SourceObject, clock: Callable[[], float]) -> AsyncIterator[bytes]:
    """All bytes of an opened source. `clock` is monotonic, in seconds. Raises SourceError."""
    done, chunks, retries = 0, found.chunks, SourceRetries(clock)
    for _ in range(MOST_CONTINUATIONS):
        try:
            async for chunk in chunks:
                done += len(chunk)
                retries = SourceRetries(clock)
                yield chunk
        except SourceError as error:
            if found.read is None or found.size is None or not error.passing or isinstance(error, SourceChangedError):
                raise
            wait = retries.next_wait(error.retry_after)
            if wait is None:
                raise
            log.warning("stream is continued", name=found.name, offset=done, error=str(error), seconds=wait)
            await asyncio.sleep(wait)
            chunks = found.read(done, found.size - done)
        else:
            return
    raise SourceError(f"{found.name} broke off {MOST_CONTINUATIONS} times", passing=True)
