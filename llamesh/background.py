"""Supervised periodic tasks: log rotation, pruning, polling, watching a stream.

Invariant: a failure is reported and the work runs again after a backoff; only `close` ends a task. No loop chooses which exceptions it
survives, because what it may raise changes with the layers below it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

FIRST_BACKOFF = 0.5
"""Backoff in seconds after the first failure; doubled with each further failure in a row."""
MAX_BACKOFF = 30.0
"""Longest backoff in seconds."""

Report = Callable[[str, Exception], None]
"""Called with the task's name and the failure."""


class BackgroundTask:
    """Runs `work` repeatedly until closed.

    `name` describes the work for people, for instance "rotate logs". `every` is the pause in seconds after a success; 0 is for work that
    waits by itself, such as reading a stream. With `immediately`, the first run comes before the first pause. `longest` bounds the backoff
    for work that must not be late. `report` must not raise. `sleep` is an argument for tests.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        report: Report,
        *,
        every: float = 0.0,
        immediately: bool = True,
        longest: float = MAX_BACKOFF,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.failures = 0
        """Failures in a row."""
        self._work = work
        self._report = report
        self._every = every
        self._immediately = immediately
        self._longest = longest
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task. Idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def close(self) -> None:
        """Cancel the work and wait for its end. Harmless if the task was never started."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        if not self._immediately:
            await self._sleep(self._every)
        while True:
            await self._sleep(await self._once())

    async def _once(self) -> float:
        """Run the work once; return the pause in seconds before the next run."""
        try:
            await self._work()
        except Exception as failure:
            self.failures += 1
            self._report(self.name, failure)
            return max(self._every, min(backoff(self.failures), self._longest))
        self.failures = 0
        return self._every


def sleep_or(woken: asyncio.Event) -> Callable[[float], Awaitable[None]]:
    """Return a `sleep` for a BackgroundTask that also ends when the event is set."""

    async def sleep(seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await woken.wait()
        except TimeoutError:
            return

    return sleep


def backoff(failures: int) -> float:
    """Return the backoff in seconds after this number of consecutive failures; 0 after none."""
    return 0.0 if failures < 1 else float(min(FIRST_BACKOFF * 2 ** min(failures - 1, 16), MAX_BACKOFF))
