"""Watches the database of a process: applies migrations at the start, waits for a database that does not answer, then probes it.

`Member.prepare` calls `prepare` once. If the database does not answer, it listens, reports NOT_SERVING, and calls `wait`, which tries again
every second. Once the tables are ready, `start` begins a liveness probe every two seconds, whose result goes into the member's health.

Invariant: a failure that waiting cannot cure ends the start (StartRefused); no other failure ends the process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from llamesh.background import BackgroundTask
from llamesh.kit.database import Database, DatabaseRefusedError
from llamesh.kit.errors import MeshError, Reason, StartRefused
from llamesh.kit.logs import log, report_failure
from llamesh.waiting import Wait

PROBE_SECONDS = 2.0
"""Seconds between two liveness probes."""
ATTEMPT_SECONDS = 1.0
"""Seconds between two attempts to migrate at the start."""
MIN_LOG_INTERVAL = 60.0
"""Minimum number of seconds between two log lines about the wait."""


class DatabaseWatch:
    """Watches one database. `report(answers)` gets the result of each probe; `on_wait` gets the wait of the member."""

    def __init__(
        self,
        database: Database,
        report: Callable[[bool], Awaitable[None]],
        on_wait: Callable[[Wait], None] = lambda _: None,
    ) -> None:
        self.answers = True
        """Result of the last probe."""
        self._database = database
        self._report = report
        self._on_wait = on_wait
        self._logged = float("-inf")
        self._probing = BackgroundTask("watch the database", self._probe, report_failure, every=PROBE_SECONDS)

    async def prepare(self, package: str) -> MeshError | None:
        """Apply the migrations. Return the failure if waiting may cure it; StartRefused if it cannot."""
        try:
            await self._database.migrate(package)
        except MeshError as failure:
            self._refuse_start(failure)
            self.answers = False
            return failure
        return None

    async def wait(self, package: str, failure: MeshError, stopping: asyncio.Event) -> bool:
        """Try again until it works; return False if `stopping` is set first. Errors as in `prepare`."""
        ready = asyncio.get_running_loop().create_future()

        async def attempt() -> None:
            nonlocal failure
            self._report_wait(failure)
            try:
                again = await self.prepare(package)
            except Exception as error:
                ready.set_exception(error)
            else:
                failure = again or failure
                if again is None:
                    ready.set_result(True)
            if ready.done():
                await asyncio.Event().wait()  # until the task is closed

        attempts = BackgroundTask("wait for the database", attempt, report_failure, every=ATTEMPT_SECONDS)
        stop = asyncio.ensure_future(stopping.wait())
        attempts.start()
        try:
            await asyncio.wait({ready, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            await attempts.close()
        if not ready.done():
            return False
        ready.result()
        self.answers = True
        log.info("the database answers", place=self._database.place)
        return True

    def start(self) -> None:
        """Start the liveness probe."""
        self._probing.start()

    async def close(self) -> None:
        """Stop the liveness probe."""
        await self._probing.close()

    async def _probe(self) -> None:
        try:
            await self._database.probe()
        except MeshError as failure:
            if self.answers:
                log.warning("the database does not answer", place=self._database.place, error=_cause(failure))
            self.answers = False
        else:
            if not self.answers:
                log.info("the database answers again", place=self._database.place)
            self.answers = True
        await self._report(self.answers)

    def _report_wait(self, failure: MeshError) -> None:
        cause = "start it, or correct DATABASE_URL" if self._database.schema else "free the file or its disk"
        wait = Wait(
            f"the database at {self._database.place}: {_cause(failure)}", f"{cause}; the mesh then continues by itself"
        )
        self._on_wait(wait)
        if time.monotonic() - self._logged >= MIN_LOG_INTERVAL:
            self._logged = time.monotonic()
            log.warning("waiting for the database", place=self._database.place, error=_cause(failure))

    def _refuse_start(self, failure: MeshError) -> None:
        place = self._database.place
        if isinstance(failure, DatabaseRefusedError):
            raise StartRefused(f"the database at {place}: {_cause(failure)}") from failure
        if failure.reason == Reason.ERROR_REASON_DATABASE_DAMAGED:
            raise StartRefused(f"{place}: {failure.message}. {failure.remedy}") from failure


def _cause(failure: MeshError) -> str:
    """Describe a failure with the message of its cause."""
    cause = failure.__cause__
    return failure.message if cause is None else f"{failure.message}: {str(cause) or type(cause).__name__}"
