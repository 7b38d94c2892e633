"""Which jobs have changed, for the watchers of this process.

`Jobs` and `StepRows` write rows in `writing`, which announces the job after the transaction; a run announces progress, which is in
memory only. Only this process writes the rows, so no change is missed.

Invariant: a watcher holds each changed job once, so a slow reader gets fewer messages, and its memory is bounded by the number of jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError
from llamesh.kit.outages import is_outage


class ChangedJobs:
    """The ids of jobs that have changed since one reader has taken them."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}
        self._added = asyncio.Event()

    def add(self, job_ids: Iterable[str]) -> None:
        """Add jobs; one that is there already keeps its place."""
        self._ids.update(dict.fromkeys(job_ids))
        self._added.set()

    def __len__(self) -> int:
        return len(self._ids)

    def take(self, count: int) -> list[str]:
        """Remove and return the first jobs, at most `count`."""
        taken = list(self._ids)[:count]
        for job_id in taken:
            del self._ids[job_id]
        return taken

    async def wait(self) -> None:
        """Wait until there is a job to take."""
        while not self._ids:
            self._added.clear()
            await self._added.wait()


class JobChanges:
    """The broadcaster of changed jobs."""

    def __init__(self) -> None:
        self._watchers: dict[ChangedJobs, str] = {}

    @contextmanager
    def watch(self, job_id: str) -> Iterator[ChangedJobs]:
        """Yield a watcher of all changes from now on: of one job, or of all jobs if `job_id` is empty."""
        watcher = ChangedJobs()
        self._watchers[watcher] = job_id
        try:
            yield watcher
        finally:
            del self._watchers[watcher]

    def announce(self, job_id: str) -> None:
        """Tell the watchers of a job that it may have changed."""
        for watcher, wanted in self._watchers.items():
            if wanted in ("", job_id):
                watcher.add([job_id])

    @asynccontextmanager
    async def writing(self, database: Database, job_id: str) -> AsyncIterator[AsyncSession]:
        """Open a transaction that may change a job, and announce the job after it, unless the change was refused.

        After an outage it is announced too: the transaction may have been committed.
        """
        try:
            async with database.begin() as session:
                yield session
        except MeshError as error:
            if is_outage(error):
                self.announce(job_id)
            raise
        except BaseException:
            self.announce(job_id)
            raise
        self.announce(job_id)
