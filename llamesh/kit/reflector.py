"""What another member keeps and tells in a stream that stays open: a full list, then each change.

Invariant: what was learned stays until a full list replaces it, so a member that goes away changes nothing. A process that starts
knows nothing until it was told (`first` waits for that).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable
from datetime import timedelta
from typing import Generic, TypeVar

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure

LISTED_FOR = timedelta(days=1)
"""How long a list counts for who tells it. Then its watches end and followers list anew, without what has expired: a stream only adds."""
RETRY_SECONDS = 0.5
LONGEST_PAUSE = 2.0

Message = TypeVar("Message")


class Reflector(ABC, Generic[Message]):
    """Follows one stream until closed."""

    def __init__(self, name: str) -> None:
        """`name`: what is followed, in the log."""
        self._name = name
        self._synced = asyncio.Event()
        self._task = BackgroundTask(
            f"follow {name}", self._watch, report_failure, every=RETRY_SECONDS, longest=LONGEST_PAUSE
        )

    @property
    def synced(self) -> bool:
        """Whether a full list was taken."""
        return self._synced.is_set()

    def start(self) -> None:
        """Begin to follow."""
        self._task.start()

    async def first(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait until a full list was taken. False where there was none in `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._synced.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop following."""
        await self._task.close()

    @abstractmethod
    def _open(self) -> AsyncIterable[Message]:
        """The stream, anew."""

    @abstractmethod
    def _begin(self) -> None:
        """A new full list begins."""

    @abstractmethod
    def _take(self, message: Message) -> bool:
        """Take one message; whether the full list is complete by now."""

    async def _watch(self) -> None:
        synced = False
        self._begin()
        try:
            async for message in self._open():
                synced = self._take(message)
                if synced:
                    self._synced.set()
        except grpc.aio.AioRpcError as error:
            if not synced:
                raise
            # It had told everything: its end is that of the other process, and no failure.
            log.debug("the watch ended", of=self._name, code=error.code().name)
