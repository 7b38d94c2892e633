"""Whether the object store can be used: looked at all the time, so that transfers wait for it and health says what is wrong.

Invariant: while `problem` is set no transfer begins. It is cleared only by a look that succeeded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure
from llamesh.kit.objects import ObjectStore, StoreDeniedError, StoreError

CHECK_SECONDS = 10.0
"""How often a store that works is looked at."""


class StoreHealth:
    """Looks at one store. `on_change` is called when `problem` changed; `clock` is monotonic, in seconds."""

    def __init__(self, store: ObjectStore, on_change: Callable[[], None], clock: Callable[[], float]) -> None:
        self.problem: StoreError | None = None
        """Why the store cannot be used."""
        self.known = False
        """Whether it was looked at at all."""
        self._store = store
        self._on_change = on_change
        self._clock = clock
        self._since = 0.0
        self._hurry = asyncio.Event()
        self._asked = 0
        self._answered = 0
        self._looking = BackgroundTask(
            "look at the object store", self._look, report_failure, every=CHECK_SECONDS, sleep=self._wait
        )

    @property
    def usable(self) -> bool:
        """Whether transfers may begin."""
        return self.known and self.problem is None

    @property
    def check_pending(self) -> bool:
        """Whether a look that was asked for is still to come: what is known is older than the question."""
        return self._asked > self._answered

    @property
    def denied(self) -> bool:
        """Whether it refuses us, so that waiting does not help."""
        return isinstance(self.problem, StoreDeniedError)

    @property
    def away_seconds(self) -> float:
        """For how long it has not been usable."""
        return self._clock() - self._since if self.problem else 0.0

    def start(self) -> None:
        """Begin to look."""
        self._looking.start()

    async def close(self) -> None:
        """Stop looking."""
        await self._looking.close()

    def check_now(self) -> None:
        """Look at once where there is a problem: somebody may have mended it."""
        if self.problem is not None:
            self._asked += 1
            self._hurry.set()

    def report(self, error: StoreError) -> None:
        """A transfer found that the store does not work."""
        self._set(error)
        self.check_now()

    async def _look(self) -> None:
        self._hurry.clear()
        asked = self._asked
        try:
            if self.usable:
                await self._store.check()
            else:
                await self._store.prepare()
        except StoreError as error:
            self._answered = asked
            self._set(error)
            raise
        self._answered = asked
        if not self.usable:
            self.known, self.problem = True, None
            log.info("the object store can be used")
            self._on_change()

    def _set(self, error: StoreError) -> None:
        if self.problem is None:
            self._since = self._clock()
        self.known, self.problem = True, error
        self._on_change()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._hurry.wait()
        except TimeoutError:
            return
