"""Whether the object store can be used. A background task checks it, so that transfers wait for it and the health service reports it.

A healthy store is checked every CHECK_SECONDS. A transfer that finds a failure reports it, which wakes the task at once; so does a caller
who asks for a transfer while there is a problem.

Invariant: while `problem` is set no transfer begins. Only a check that succeeds clears it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.kit.objects import ObjectStore, StoreDeniedError, StoreError

CHECK_SECONDS = 10.0
"""Interval at which a healthy store is checked."""


class StoreHealth:
    """Checks one store; `clock` is monotonic, in seconds."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self.problem: StoreError | None = None
        """Why the store cannot be used."""
        self.known = False
        """Whether a check has ended."""
        self._store = store
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []
        self._since = 0.0
        self._hurry = asyncio.Event()
        self._requested = 0
        self._answered = 0
        self._task = BackgroundTask(
            "check the object store", self._check, report_failure, every=CHECK_SECONDS, sleep=self._wait
        )

    @property
    def usable(self) -> bool:
        """Whether transfers may begin."""
        return self.known and self.problem is None

    @property
    def check_pending(self) -> bool:
        """Whether a check was requested and has not ended: what is known is older than the request."""
        return self._requested > self._answered

    @property
    def denied(self) -> bool:
        """Whether the store rejects our credentials, so that waiting does not help."""
        return isinstance(self.problem, StoreDeniedError)

    @property
    def away_seconds(self) -> float:
        """For how long the store has been unusable."""
        return self._clock() - self._since if self.problem else 0.0

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call this whenever a check or a report has set or cleared `problem`."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Begin to check."""
        self._task.start()

    async def close(self) -> None:
        """Stop checking."""
        await self._task.close()

    def check_now(self) -> None:
        """Check at once if there is a problem: an operator may have fixed it."""
        if self.problem is not None:
            self._requested += 1
            self._hurry.set()

    def report(self, error: StoreError) -> None:
        """A transfer found that the store does not work."""
        self._set(error)
        self.check_now()

    async def _check(self) -> None:
        self._hurry.clear()
        requested = self._requested
        try:
            if self.usable:
                await self._store.check()
            else:
                await self._store.prepare()
        except StoreError as error:
            self._answered = requested
            self._set(error)
            raise
        self._answered = requested
        if not self.usable:
            self.known, self.problem = True, None
            log.info("the object store can be used")
            self._tell()

    def _set(self, error: StoreError) -> None:
        if self.problem is None:
            self._since = self._clock()
        self.known, self.problem = True, error
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
