"""The limit of bandwidth: bytes per second of all transfers of this process together, in equal shares.

Each transfer takes a share. After each chunk it waits until the limit allows the chunk; a source that is read no further sends no more. The
chunks that wait are granted by start-time fair queueing: the next is of the transfer that was granted the fewest bytes since it began, so
the number of its streams and the size of its chunks do not matter.

Invariant: in any time, not more bytes are granted than the limit allows in this time and in MAX_CREDIT_SECONDS, plus one chunk.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import count
from typing import Any

from services.download.sources import SourceObject

MAX_CREDIT_SECONDS = 0.1
"""A grant that comes late by up to this time does not delay the grants after it."""

Later = Callable[[float, Callable[[], None]], Any]
"""Calls a function after a number of seconds."""


class Bandwidth:
    """The limit. `bytes_per_second` is 0 for none; `clock` is monotonic, in seconds; by default `later` is that of the running loop."""

    def __init__(self, bytes_per_second: int, clock: Callable[[], float], later: Later | None = None) -> None:
        self._rate = bytes_per_second
        self._clock = clock
        self._later = later
        self._waiting: list[tuple[float, int, int, asyncio.Future[None]]] = []
        """Start in granted bytes, number, length and result of each chunk that waits, as a heap."""
        self._numbers = count()
        self._granted = 0.0
        """The start of the last granted chunk."""
        self._free_at = 0.0
        """When the next chunk may be granted."""
        self._timer = False

    def limited(self, found: SourceObject) -> SourceObject:
        """Return an opened source whose reads keep the limit, all within one share. Bytes of this machine have no limit."""
        if not self._rate or found.local:
            return found
        share, read = BandwidthShare(self), found.read
        return replace(
            found,
            chunks=share.passed(found.chunks),
            read=(lambda offset, length: share.passed(read(offset, length))) if read is not None else None,
            bytes_per_second=self._rate,
        )

    async def take(self, share: BandwidthShare, length: int) -> None:
        """Wait until a chunk of `length` bytes of a transfer is granted."""
        if not self._rate:
            return
        start = max(share.end, self._granted)
        share.end = start + length
        granted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (start, next(self._numbers), length, granted))
        self._grant()
        await granted

    def _grant(self) -> None:
        """Grant the chunks whose time has come."""
        while self._waiting:
            start, _, length, granted = self._waiting[0]
            now = self._clock()
            if granted.cancelled():
                heapq.heappop(self._waiting)
            elif now < self._free_at:
                self._wake_after(self._free_at - now)
                return
            else:
                heapq.heappop(self._waiting)
                self._granted = start
                self._free_at = max(self._free_at, now - MAX_CREDIT_SECONDS) + length / self._rate
                granted.set_result(None)

    def _wake_after(self, seconds: float) -> None:
        if not self._timer:
            self._timer = True
            (self._later or asyncio.get_running_loop().call_later)(seconds, self._wake)

    def _wake(self) -> None:
        self._timer = False
        self._grant()


class BandwidthShare:
    """The share of one transfer, however many streams it has. `end` is the number of granted bytes at which its last chunk ends."""

    def __init__(self, bandwidth: Bandwidth) -> None:
        self._bandwidth = bandwidth
        self.end = 0.0

    async def passed(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield chunks, each as soon as it is granted."""
        async for chunk in chunks:
            await self._bandwidth.take(self, len(chunk))
            yield chunk
