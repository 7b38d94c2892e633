"""Which servers are to be looked at. A server waits here at most once, and is never looked at twice at the same time.

Level-triggered: an entry says "look", never what happened, so entries can be merged, repeated and lost to a later one without harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from llamesh.kit.logs import log

FIRST_RETRY = 0.2
"""Seconds before a look that failed is tried again; doubled each time."""
LONGEST_RETRY = 10.0


class WorkQueue:
    """Looks at each name that is added, several names side by side."""

    def __init__(self, reconcile: Callable[[str], Awaitable[None]], workers: int = 16) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: set[str] = set()
        self._in_work: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to look."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]

    async def close(self) -> None:
        """Stop looking; looks under way are cut short."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, name: str) -> None:
        """Look at a name soon; once more where it is being looked at now."""
        if name in self._in_work:
            self._again.add(name)
        elif name not in self._waiting:
            self._waiting.add(name)
            self._ready.put_nowait(name)

    def add_after(self, name: str, seconds: float) -> None:
        """Look at a name after so many seconds; an earlier such wish for it is replaced."""
        if timer := self._timers.pop(name, None):
            timer.cancel()
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, self._timer_ended, name)

    def _timer_ended(self, name: str) -> None:
        self._timers.pop(name, None)
        self.add(name)

    async def _work(self) -> None:
        while True:
            name = await self._ready.get()
            self._waiting.discard(name)
            self._in_work.add(name)
            if timer := self._timers.pop(name, None):
                timer.cancel()
            try:
                await self._reconcile(name)
                self._failures.pop(name, None)
            except Exception as error:
                failures = self._failures[name] = self._failures.get(name, 0) + 1
                log.error("look failed", server=name, failures=failures, exc_info=error)
                self.add_after(name, min(FIRST_RETRY * 2 ** min(failures - 1, 10), LONGEST_RETRY))
            finally:
                self._in_work.discard(name)
                if name in self._again:
                    self._again.discard(name)
                    self.add(name)
