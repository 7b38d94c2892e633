"""A reflector mirrors a list that another member owns: it watches a stream that sends the full list, then each change.

A `BackgroundTask` opens the stream, and opens it again after a pause when it ends. Subclasses process the messages: `_begin` starts a new
list, `_take` handles one message and returns whether the list is complete.

Invariant: known items stay until a complete new list replaces them, so an outage of the other member changes nothing. A process that has
just started has no items until the first list is complete; `first` waits for it, and `on_failure` is called with each failed watch before.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, Callable
from datetime import timedelta
from typing import Generic, TypeVar

import grpc

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure

LISTED_FOR = timedelta(days=1)
"""A server ends each watch after this time, so that its reflectors list again: a stream only adds items, a new list drops expired ones."""
RETRY_SECONDS = 0.5
MAX_PAUSE = 2.0

Message = TypeVar("Message")


class Reflector(ABC, Generic[Message]):
    """Watches one stream until closed."""

    def __init__(self, name: str) -> None:
        """`name` is the name of the list in the log."""
        self.on_failure: Callable[[grpc.aio.AioRpcError], None] | None = None
        """Called if a watch ends before the first complete list."""
        self._name = name
        self._synced = asyncio.Event()
        self._task = BackgroundTask(
            f"follow {name}", self._watch, report_failure, every=RETRY_SECONDS, longest=MAX_PAUSE
        )

    @property
    def synced(self) -> bool:
        """Whether a complete list has arrived."""
        return self._synced.is_set()

    def start(self) -> None:
        """Start watching."""
        self._task.start()

    async def first(self, timeout: float) -> bool:  # noqa: ASYNC109
        """Wait for the first complete list; return False if none arrives in `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._synced.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop watching."""
        await self._task.close()

    @abstractmethod
    def _open(self) -> AsyncIterable[Message]:
        """Open the stream."""

    @abstractmethod
    def _begin(self) -> None:
        """Prepare for a new list."""

    @abstractmethod
    def _take(self, message: Message) -> bool:
        """Handle one message; return whether the list is complete."""

    async def _watch(self) -> None:
        synced = False
        self._begin()
        try:
            async for message in self._open():
                synced = self._take(message)
                if synced:
                    self._synced.set()
        except grpc.aio.AioRpcError as error:
            if self.on_failure and not self.synced:
                self.on_failure(error)
            if not synced:
                raise
            # The list was complete: the stream ends because the other process restarts, which is not a failure.
            log.debug("the watch ended", of=self._name, code=error.code().name)
