"""Background tasks that survive their own failures: log rotation, pruning, polling, watching a stream.

A failure is reported and the work is run again after a backoff; only `close` ends a task. No loop decides for itself which exceptions it
survives, because what a loop may raise changes with the layers below it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

FIRST_BACKOFF = 0.5
"""Seconds before the work is tried again after one failure; doubled with each failure in a row."""
LONGEST_BACKOFF = 30.0
"""No backoff is longer, in seconds."""

Report = Callable[[str, Exception], None]
"""Called with the task's name and the failure."""


class BackgroundTask:
    """Runs `work` again and again until closed.

    `name` names the work for people, for instance "rotate logs". `every` is the pause in seconds after a success; 0 suits work that
    waits by itself, such as reading a stream. `immediately` says whether the first run comes before the first pause.
    `longest` bounds the backoff where the work must not be late. `report` must not raise. `sleep` is passed in for tests.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[None]],
        report: Report,
        *,
        every: float = 0.0,
        immediately: bool = True,
        longest: float = LONGEST_BACKOFF,
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
        """Begin; a second call changes nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def close(self) -> None:
        """Cancel the work and wait for its end. A task that was never started may be closed too."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        if not self._immediately:
            await self._sleep(self._every)
        while True:
            await self._sleep(await self._once())

    async def _once(self) -> float:
        """Run the work once. Returns the seconds to pause before the next run."""
        try:
            await self._work()
        except Exception as failure:
            self.failures += 1
            self._report(self.name, failure)
            return max(self._every, min(backoff(self.failures), self._longest))
        self.failures = 0
        return self._every


def backoff(failures: int) -> float:
    """Seconds to pause after so many failures in a row; 0 after none."""
    return 0.0 if failures < 1 else float(min(FIRST_BACKOFF * 2 ** min(failures - 1, 16), LONGEST_BACKOFF))
