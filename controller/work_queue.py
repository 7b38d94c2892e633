"""Work queue of server ids that must be reconciled. An id waits at most once and is never reconciled twice at the same time.

Events call `add`, timers call it through `add_after`, and a fixed number of workers take ids and await `reconcile`. An id that is added
while it is being reconciled is queued again afterwards. A failure is logged and retried with exponential backoff for that id.

Invariant: entries are level-triggered. They do not contain the cause, so they can be merged and repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from llamesh.kit.logs import log

FIRST_RETRY = 0.2
"""Seconds before a failed reconciliation is retried; doubled with each further failure."""
MAX_RETRY = 10.0


class WorkQueue:
    """Reconciles each name that is added, several names concurrently."""

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
        """Start the workers."""
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]

    async def close(self) -> None:
        """Stop the workers and cancel what they are doing."""
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, name: str) -> None:
        """Queue a name; if it is being reconciled now, queue it again afterwards."""
        if name in self._in_work:
            self._again.add(name)
        elif name not in self._waiting:
            self._waiting.add(name)
            self._ready.put_nowait(name)

    def add_after(self, name: str, seconds: float) -> None:
        """Queue a name after this number of seconds. An earlier timer of the name is replaced."""
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
                log.error("reconciliation failed", server=name, failures=failures, exc_info=error)
                self.add_after(name, min(FIRST_RETRY * 2 ** min(failures - 1, 10), MAX_RETRY))
            finally:
                self._in_work.discard(name)
                if name in self._again:
                    self._again.discard(name)
                    self.add(name)
