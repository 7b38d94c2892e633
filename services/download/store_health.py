"""Health of the object store. A background task checks it, so that transfers wait for it and the health service reports it.

A healthy store is checked every CHECK_SECONDS. A transfer that finds a failure reports it, which wakes the task at once; so does a call
that requests a transfer while there is a problem.

Invariant: no transfer begins while `problem` is set. Only a successful check clears `problem`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.kit.objects import ObjectStore, StoreDeniedError, StoreError

CHECK_SECONDS = 10.0
"""Seconds between two checks of a healthy store."""


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
        """Whether a check was requested and has not ended: the last result is then older than the request."""
        return self._requested > self._answered

    @property
    def denied(self) -> bool:
        """Whether the store refuses in a way that only a person can mend, so that waiting does not help."""
        return isinstance(self.problem, StoreDeniedError)

    @property
    def outage_seconds(self) -> float:
        """Seconds for which the store has been unusable."""
        return self._clock() - self._since if self.problem else 0.0

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a check or a report has set or cleared `problem`."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Start the checks."""
        self._task.start()

    async def close(self) -> None:
        """Stop the checks."""
        await self._task.close()

    def check_now(self) -> None:
        """Check at once if there is a problem: an operator may have fixed it."""
        if self.problem is not None:
            self._requested += 1
            self._hurry.set()

    def report(self, error: StoreError) -> None:
        """Record the failure that a transfer found, and check at once."""
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
            self._notify()

    def _set(self, error: StoreError) -> None:
        if self.problem is None:
            self._since = self._clock()
        self.known, self.problem = True, error
        self._notify()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
