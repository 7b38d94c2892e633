"""A stream of states that follows changes in this process or in a shared database: the core of a server-streaming `Watch` call.

A writer calls `announce` after its transaction. Each reader of `states` then reads the state again and sends its client the difference.
Other processes on the same database announce nothing here, so a feed may also read at an interval.

Invariant: a change that is announced during a read is read again, never missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from llamesh.kit.database import is_unavailable
from llamesh.kit.errors import MeshError
from llamesh.kit.reflector import LISTED_FOR

RETRY_SECONDS = 1.0
"""Pause before the state is read again if the database did not answer."""

State = TypeVar("State")


class ChangeFeed(Generic[State]):
    """`read` returns the present state. `resync_seconds` is the interval of reads without an announcement; None: once in `LISTED_FOR`."""

    def __init__(self, read: Callable[[], Awaitable[State]], resync_seconds: float | None = None) -> None:
        self._read = read
        self._resync_seconds = resync_seconds or LISTED_FOR.total_seconds()
        self._announced = asyncio.Event()

    def announce(self) -> None:
        """Wake all readers: the state may have changed."""
        announced, self._announced = self._announced, asyncio.Event()
        announced.set()

    async def states(self) -> AsyncIterator[State]:
        """Yield the present state, and the state again after each announcement or interval, changed or not.

        The first read raises the errors of `read`. Later reads wait while the database is unavailable: the last state stays valid.
        """
        first = True
        while True:
            announced = self._announced  # taken before the read, so that a change during the read wakes this reader
            try:
                state = await self._read()
            except MeshError as error:
                if first or not is_unavailable(error):
                    raise
                await asyncio.sleep(RETRY_SECONDS)
                continue
            first = False
            yield state
            try:
                async with asyncio.timeout(self._resync_seconds):
                    await announced.wait()
            except TimeoutError:
                continue
