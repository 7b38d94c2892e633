"""Serves watches of jobs: first the present jobs, then `synced`, then changes.

Each call of `watch` runs in the task of its gRPC stream. It takes the ids of changed jobs, reads their rows, sends them, and waits for the
next change; after a heartbeat's time of silence it sends a heartbeat. The present jobs are taken in the same way: at the start all count as
changed.

Invariant: a change during a read is read again, never missed. A watch reads the rows at most once in MIN_PAUSE seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from llamesh.kit.change_feed import RETRY_SECONDS
from llamesh.kit.database import is_unavailable
from llamesh.kit.errors import MeshError
from llamesh.kit.watch_limit import HEARTBEAT, WatchLimit
from llamesh.v1.quant_pb2 import WatchQuantJobsResponse
from services.quant.job_changes import ChangedJobs, JobChanges
from services.quant.jobs import Job, Jobs
from services.quant.messages import job_message
from services.quant.worker import JobWorker

MIN_PAUSE = 0.2
"""Minimum number of seconds between two reads for one watch: a step may report progress many times a second."""
_BLOCK = 100
"""Jobs that are read at once."""


class JobWatches:
    """Serves the watches of one process."""

    def __init__(self, jobs: Jobs, changes: JobChanges, worker: JobWorker, heartbeat: float = HEARTBEAT) -> None:
        self._jobs = jobs
        self._changes = changes
        self._worker = worker
        self._heartbeat = heartbeat
        self._limit = WatchLimit()

    async def watch(self, subject: str, uid: str, job_id: str) -> AsyncGenerator[WatchQuantJobsResponse, None]:
        """Yield the jobs, `synced`, then changes without end; with a `job_id` only that job, until its end or removal.

        Raises TOO_MANY_WATCHES and QUANT_JOB_NOT_FOUND.
        """
        with self._limit.counted(subject, uid), self._changes.watch(job_id) as changed:
            changed.add([(await self._jobs.get(job_id)).row.job_id] if job_id else await self._jobs.ids())
            # The jobs that are read without a pause: those of the start. A job that changes meanwhile is behind them.
            left, synced = len(changed), False
            last: WatchQuantJobsResponse | None = None
            while True:
                ids = changed.take(_BLOCK)
                found = await self._read(ids)
                for each in ids:
                    response = self._response(each, found.get(each), logs=bool(job_id))
                    if response != last:
                        yield response
                    last = response
                    if job_id and not (each in found and found[each].active):
                        return
                left -= len(ids)
                if left > 0:
                    continue
                if not synced:
                    yield WatchQuantJobsResponse(synced=True)
                    synced = True
                await asyncio.sleep(MIN_PAUSE)
                if not await self._changed(changed):
                    yield WatchQuantJobsResponse(heartbeat=True)

    def _response(self, job_id: str, job: Job | None, *, logs: bool) -> WatchQuantJobsResponse:
        if job is None:
            return WatchQuantJobsResponse(removed_job_id=job_id)
        return WatchQuantJobsResponse(job=job_message(job, self._worker.progress(job_id), logs=logs))

    async def _read(self, ids: Sequence[str]) -> Mapping[str, Job]:
        """Return the jobs that exist. Waits while the database is unavailable: the jobs that were sent last stay valid."""
        while True:
            try:
                return await self._jobs.of_ids(ids)
            except MeshError as error:
                if not is_unavailable(error):
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _changed(self, changed: ChangedJobs) -> bool:
        """Wait for a change; return False after a heartbeat's time without one."""
        try:
            async with asyncio.timeout(self._heartbeat):
                await changed.wait()
        except TimeoutError:
            return False
        return True
