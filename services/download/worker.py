"""The worker makes the transfers' rows come true: fetch, verify, publish, record.

Level-triggered: it looks at the rows, starts what is active and has no task, stops tasks whose row moved on. A missed
wake-up costs a few seconds; a restart finds the interrupted rows like any others and starts them again. One process
works on the rows of a database at a time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from llamesh.kit.logs import log
from llamesh.kit.objects import ObjectStore, StagedObject, StoreDeniedError, StoreError
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.messages import download_message, model_message
from services.download.progress import Progress
from services.download.sources import Source
from services.download.tables import TransferRow
from services.download.transfers import Transfers
from services.download.verification import counted, failure, verified

AT_ONCE = 3
"""Transfers at a time; more would only share the same line and disk."""
LOOK_SECONDS = 5.0
"""How often the rows are looked at without a wake-up, and progress is written to them."""
TELL_SECONDS = 0.5
"""How often watchers hear of progress."""
STORE_PATIENCE_SECONDS = 60.0
"""How long transfers wait for an object store that is not there when this process starts."""

T = TypeVar("T")


class Worker:
    """Runs the transfers of this process."""

    def __init__(
        self,
        transfers: Transfers,
        catalogue: Catalogue,
        store: ObjectStore,
        source: Source,
        changes: Changes,
        *,
        at_once: int = AT_ONCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transfers = transfers
        self._catalogue = catalogue
        self._store = store
        self._source = source
        self._changes = changes
        self._at_once = at_once
        self._clock = clock
        self._wake = asyncio.Event()
        self._tasks: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._running: dict[str, tuple[TransferRow, Progress]] = {}
        self._stopped: set[str] = set()

    def wake(self) -> None:
        """Look at the rows now: one of them changed."""
        self._wake.set()

    def progress(self, model_uuid: str) -> Progress | None:
        """How far a running transfer is."""
        running = self._running.get(model_uuid)
        return running[1] if running else None

    async def run(self) -> None:
        """Work until cancelled; then stop every transfer where it is, for the next process to start again."""
        telling = asyncio.create_task(self._tell_progress())
        try:
            await self._prepare()
            while True:
                self._wake.clear()
                try:
                    await self._follow_rows()
                except (SQLAlchemyError, OSError) as error:
                    log.error("transfers not read", error=str(error))
                await self._woken_or(LOOK_SECONDS)
        finally:
            telling.cancel()
            tasks = [task for _, task in self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(telling, *tasks, return_exceptions=True)

    async def _prepare(self) -> None:
        """Make the store ready, however long it takes to answer, and remove what an earlier process left in it."""
        began_at = self._clock()
        while True:
            self._wake.clear()
            try:
                await self._store.prepare()
                await self._catalogue.sweep()
            except (StoreError, SQLAlchemyError, OSError) as error:
                log.error("object store not ready", error=str(error))
                waited = self._clock() - began_at
                if isinstance(error, StoreDeniedError) or waited > STORE_PATIENCE_SECONDS:
                    await self._fail_all(error)
                await self._woken_or(LOOK_SECONDS)
            else:
                return

    async def _fail_all(self, error: Exception) -> None:
        """End every transfer: to wait longer in silence would tell nobody what is wrong."""
        try:
            for row in await self._transfers.active():
                await self._fail(row, error)
        except (SQLAlchemyError, OSError) as unwritten:
            log.error("transfers not settled", error=str(unwritten))

    async def _woken_or(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _follow_rows(self) -> None:
        while self._stopped:
            # Its last progress may have been told after its row moved on: what counts is told last.
            stopped = await self._transfers.find(self._stopped.pop())
            if stopped is not None:
                self._changes.download(download_message(stopped))
        rows = await self._transfers.active()
        wanted = {(row.model_uuid, row.attempt) for row in rows}
        for model_uuid, (attempt, task) in self._tasks.items():
            if (model_uuid, attempt) not in wanted:
                task.cancel()
        for row in rows:
            if len(self._tasks) >= self._at_once:
                break
            if row.model_uuid not in self._tasks:
                task = asyncio.create_task(self._transfer(row.model_uuid, row.attempt))
                self._tasks[row.model_uuid] = (row.attempt, task)
                task.add_done_callback(partial(self._end, row.model_uuid))

    def _end(self, model_uuid: str, task: asyncio.Task[None]) -> None:
        del self._tasks[model_uuid]
        if task.cancelled():
            self._stopped.add(model_uuid)
        elif error := task.exception():
            # Not even the failure could be written down: the row is still active and is taken up again.
            log.error("transfer not settled", model_uuid=model_uuid, error=str(error))
            return
        self.wake()

    async def _transfer(self, model_uuid: str, attempt: int) -> None:
        row = await self._transfers.begin(model_uuid, attempt)
        if row is None:
            return
        self._changes.download(download_message(row))
        log.info("transfer begins", model_uuid=model_uuid, source=row.shown_source, resumed=row.resume_count)
        try:
            await self._bring_in(row)
        except Exception as error:
            await self._fail(row, error)

    async def _bring_in(self, row: TransferRow) -> None:
        staged = await self._fetch(row)
        try:
            verifying = await self._transfers.progress(
                row.model_uuid, row.attempt, done=staged.size, total=staged.size, verifying=True
            )
            if verifying is None:
                return
            self._changes.download(download_message(verifying))
            metadata = await _finished(verified(staged, row.expected_sha256))
            admitted = await _finished(self._catalogue.admit(staged, metadata, row))
        finally:
            await staged.discard()
        if admitted is not None:
            model, transfer = admitted
            log.info("transfer succeeded", model_uuid=row.model_uuid, sha256=model.sha256, bytes=model.size_bytes)
            self._changes.model(model_message(model))
            self._changes.download(download_message(transfer))

    async def _fetch(self, row: TransferRow) -> StagedObject:
        staged: StagedObject | None = None
        try:
            async with self._source.open(row.source) as found:
                progress = Progress(found.size or 0, self._clock)
                self._running[row.model_uuid] = (row, progress)
                staged = await self._store.stage(counted(found.chunks, progress.add), expected_size=found.size)
        except BaseException:
            # Also the closing of the source can fail or be cancelled, when all bytes are there.
            if staged is not None:
                await staged.discard()
            raise
        finally:
            self._running.pop(row.model_uuid, None)
        return staged

    async def _fail(self, row: TransferRow, error: Exception) -> None:
        reason = failure(error, row.shown_source)
        unexpected = error if reason is not error and reason.code.name == "INTERNAL" else None
        log.warning("transfer failed", model_uuid=row.model_uuid, error=str(reason), exc_info=unexpected)
        failed = await self._transfers.fail(row.model_uuid, row.attempt, reason)
        if failed is not None:
            self._changes.download(download_message(failed))

    async def _tell_progress(self) -> None:
        """Tell watchers how far transfers are, and now and then the rows too."""
        written_at = self._clock()
        while True:
            await asyncio.sleep(TELL_SECONDS)
            for row, progress in list(self._running.values()):
                self._changes.download(download_message(row, progress))
            if self._clock() - written_at >= LOOK_SECONDS:
                written_at = self._clock()
                try:
                    await self._write_progress()
                except (SQLAlchemyError, OSError) as error:
                    log.warning("progress not written", error=str(error))

    async def _write_progress(self) -> None:
        for row, progress in list(self._running.values()):
            await self._transfers.progress(row.model_uuid, row.attempt, done=progress.done, total=progress.total)


async def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Wait for work to the end even when cancelled, then be cancelled: threads cannot be stopped half-way."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
