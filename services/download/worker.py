"""The worker makes the transfers' rows come true: fetch, verify, publish, record.

Level-triggered: it looks at the rows, starts what is active and has no task, stops tasks whose row moved on. A missed
wake-up costs a few seconds; a restart finds the interrupted rows like any others and starts them again. Several processes
on one database and store share the work: each claims the rows that it works on (see `transfers`).

Invariant: what fails outside the transfer itself never ends it. A database that fails is tried again for as long as it
takes, because the bytes are there; an object store that goes away is waited for, STORE_PATIENCE_SECONDS at most; a source that is busy
or breaks off is asked again (see `tries`). A process whose own store cannot be used ends no transfer that another might do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc

from llamesh.background import BackgroundTask, backoff
from llamesh.kit.completion import to_completion
from llamesh.kit.errors import MeshError
from llamesh.kit.leases import RENEW_SECONDS
from llamesh.kit.logs import log, report_failure
from llamesh.kit.objects import (
    ObjectNotFoundError,
    ObjectStore,
    StagedObject,
    StoreDeniedError,
    StoreError,
    StoreUnavailableError,
)
from services.download.catalogue import Catalogue, Publication, PublicationLostError
from services.download.changes import Changes
from services.download.gguf import GgufMetadata
from services.download.messages import download_message, model_message
from services.download.progress import Progress
from services.download.source_retries import MOST_TRIES, SourceRetries
from services.download.sources import Source, SourceError
from services.download.store_health import StoreHealth
from services.download.store_retries import StoreRetries
from services.download.tables import ACTIVE, TransferRow
from services.download.transfers import Transfers
from services.download.verification import checked_chunks, transfer_error, verify

AT_ONCE = 3
"""Transfers at a time; more would only share the same line and disk."""
LOOK_SECONDS = 5.0
"""How often the rows are looked at without a wake-up, and progress is written to them."""
TELL_SECONDS = 0.5
"""How often watchers hear of progress."""
SWEEP_SECONDS = 60.0
"""How often objects without a record, and what is known of transfers that ended, are looked for."""
STORE_PATIENCE_SECONDS = 600.0
"""How long a transfer waits for an object store that cannot be used; time in which the store works does not count."""

T = TypeVar("T")


class Worker:
    """Runs the transfers of this process. `on_store` is called when it is known anew whether the object store can be used."""

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
        on_store: Callable[[StoreHealth], None] = lambda _: None,
    ) -> None:
        self._transfers = transfers
        self._catalogue = catalogue
        self._store = store
        self._source = source
        self._changes = changes
        self._at_once = at_once
        self._clock = clock
        self._on_store = on_store
        self._wake = asyncio.Event()
        self._tasks: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._running: dict[str, tuple[TransferRow, Progress]] = {}
        self._stopped: set[str] = set()
        self._setbacks: dict[tuple[str, int], StoreRetries] = {}
        self._tries: dict[tuple[str, int], SourceRetries] = {}
        self._held: set[tuple[str, int, str]] = set()
        self._store_health = StoreHealth(store, self._store_changed, clock)
        self._prepared = False
        self._background = [
            BackgroundTask(
                "follow transfers", self._follow_rows, report_failure, every=LOOK_SECONDS, sleep=self._woken_or
            ),
            BackgroundTask("tell progress", self._tell_progress, report_failure, every=TELL_SECONDS),
            BackgroundTask("write progress", self._write_progress, report_failure, every=LOOK_SECONDS),
            BackgroundTask(
                "renew claims", self._renew_claims, report_failure, every=RENEW_SECONDS, longest=RENEW_SECONDS
            ),
            BackgroundTask("sweep objects", self._sweep, report_failure, every=SWEEP_SECONDS, immediately=False),
        ]

    def wake(self) -> None:
        """Look at the rows now: one of them changed."""
        self._store_health.check_now()
        self._wake.set()

    def progress(self, model_uuid: str) -> Progress | None:
        """How far a running transfer is."""
        running = self._running.get(model_uuid)
        return running[1] if running else None

    def start(self) -> None:
        """Begin to work."""
        self._store_health.start()
        for task in self._background:
            task.start()

    async def close(self) -> None:
        """Stop every transfer where it is, for another process or the next one to start again."""
        await asyncio.gather(self._store_health.close(), *(task.close() for task in self._background))
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            _cancel(task)
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._transfers.release()
        except Exception as error:
            report_failure("release claims", error)

    async def _woken_or(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _store_changed(self) -> None:
        self._on_store(self._store_health)
        self._wake.set()

    async def _follow_rows(self) -> None:
        self._wake.clear()
        while self._stopped:
            await self._tell_end(self._stopped.pop())
        rows = await self._transfers.workable()
        wanted = {(row.model_uuid, row.attempt) for row in rows}
        for model_uuid, (attempt, task) in self._tasks.items():
            if (model_uuid, attempt) not in wanted:
                _cancel(task)
        if not self._store_health.usable:
            await self._await_store(rows)
            return
        self._held.clear()
        if not self._prepared:
            await self._catalogue.drop_holds()
            await self._catalogue.sweep()
            self._prepared = True
        for row in rows:
            if row.model_uuid in self._tasks or not self._may_begin(row):
                continue
            if len(self._tasks) < self._at_once:
                task = asyncio.create_task(self._transfer(row.model_uuid, row.attempt))
                self._tasks[row.model_uuid] = (row.attempt, task)
                task.add_done_callback(partial(self._end, row.model_uuid))

    async def _tell_end(self, model_uuid: str) -> None:
        """Tell how a stopped transfer ended: its last progress may have been told after its row moved on."""
        try:
            stopped = await self._transfers.find(model_uuid)
        except BaseException:
            self._stopped.add(model_uuid)
            raise
        if stopped is not None:
            self._changes.download(download_message(stopped))

    async def _await_store(self, rows: Sequence[TransferRow]) -> None:
        """Let the rows that nobody works on say what they wait for; end them once there is no use in waiting."""
        error = self._store_health.problem
        if error is None or self._store_health.check_pending:
            return
        for row in rows:
            if row.model_uuid in self._tasks:
                continue
            hopeless = self._store_health.denied or self._store_health.away_seconds > STORE_PATIENCE_SECONDS
            if hopeless and (row.claimed_by == self._transfers.owner_id or not self._transfers.shared):
                await self._fail(row.model_uuid, row.attempt, row.shown_source, error)
            elif (key := (row.model_uuid, row.attempt, str(error))) not in self._held:
                await self._hold_back(row, _waiting(error, row))
                self._held.add(key)

    async def _hold_back(self, row: TransferRow, reason: MeshError, *, keep: bool = False) -> None:
        held = await self._transfers.hold_back(row.model_uuid, row.attempt, reason, keep=keep)
        if held is not None:
            self._changes.download(download_message(held))

    def _may_begin(self, row: TransferRow) -> bool:
        key = row.model_uuid, row.attempt
        left = max((waits[key].seconds_left() for waits in (self._setbacks, self._tries) if key in waits), default=0.0)
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._wake.set)
        return left <= 0

    def _end(self, model_uuid: str, task: asyncio.Task[None]) -> None:
        del self._tasks[model_uuid]
        if task.cancelled():
            self._stopped.add(model_uuid)
        elif error := task.exception():
            # Not even the failure could be written down: the row is still active and is taken up again.
            log.error("transfer not settled", model_uuid=model_uuid, error=str(error))
            return
        self._wake.set()

    async def _transfer(self, model_uuid: str, attempt: int) -> None:
        row = await self._transfers.begin(model_uuid, attempt)
        if row is None:
            return
        self._changes.download(download_message(row))
        log.info("transfer begins", model_uuid=model_uuid, source=row.shown_source, resumed=row.resume_count)
        patience = self._setbacks.get((model_uuid, attempt)) or StoreRetries(self._clock)
        try:
            await self._bring_in(row, patience)
        except (StoreUnavailableError, ObjectNotFoundError, PublicationLostError) as error:
            await self._set_back(row, patience, error)
        except SourceError as error:
            await self._try_again(row, error)
        except Exception as error:
            if isinstance(error, StoreDeniedError):
                self._store_health.report(error)
            await self._fail(row.model_uuid, row.attempt, row.shown_source, error)
        else:
            self._forget(model_uuid, attempt)

    async def _try_again(self, row: TransferRow, error: SourceError) -> None:
        """The source failed: ask it again later, if that may help and it was not asked often enough."""
        reason = transfer_error(error, row.shown_source)
        if error.passing:
            tries = self._tries.setdefault((row.model_uuid, row.attempt), SourceRetries(self._clock))
            wait = tries.next_wait(error.retry_after)
            if wait is not None:
                reason.message = (
                    f"tries again in {wait:.0f} s, {tries.failed} of {MOST_TRIES} tries failed: {reason.message}"
                )
                log.warning("transfer waits for its source", model_uuid=row.model_uuid, error=str(error), seconds=wait)
                await self._until_written(partial(self._hold_back, row, reason, keep=True))
                return
            reason.message += f" (given up after {tries.failed} tries)"
        await self._fail(row.model_uuid, row.attempt, row.shown_source, reason)

    async def _set_back(
        self, row: TransferRow, patience: StoreRetries, error: StoreError | PublicationLostError
    ) -> None:
        """The store failed, not the transfer: let it wait and start again, unless that has lasted too long."""
        if isinstance(error, PublicationLostError):
            error = StoreUnavailableError(str(error))
        if patience.set_back() > STORE_PATIENCE_SECONDS:
            await self._fail(row.model_uuid, row.attempt, row.shown_source, error)
            return
        self._setbacks[row.model_uuid, row.attempt] = patience
        log.warning("transfer waits for the object store", model_uuid=row.model_uuid, error=str(error))
        await self._until_written(partial(self._hold_back, row, _waiting(error, row)))
        if isinstance(error, StoreUnavailableError):
            self._store_health.report(error)

    async def _bring_in(self, row: TransferRow, patience: StoreRetries) -> None:
        staged = await self._fetch(row, patience)
        try:
            verifying = await self._until_written(
                lambda: self._transfers.progress(
                    row.model_uuid, row.attempt, done=staged.size, total=staged.size, verifying=True
                )
            )
            if verifying is None:
                return
            self._changes.download(download_message(verifying))
            metadata = await to_completion(verify(staged, row.expected_sha256))
            publication = await self._until_written(lambda: to_completion(self._catalogue.publish(staged)))
            admitted = await self._record(publication, metadata, row)
        finally:
            await _quietly("discard staged bytes", staged.discard())
        if admitted is not None:
            model, transfer = admitted
            log.info("transfer succeeded", model_uuid=row.model_uuid, sha256=model.sha256, bytes=model.size_bytes)
            self._changes.model(model_message(model))
            self._changes.download(download_message(transfer))

    async def _record(self, publication: Publication, metadata: GgufMetadata, row: TransferRow) -> Any:
        admitted = None
        try:
            admitted = await self._until_written(
                lambda: to_completion(self._catalogue.record(publication, metadata, row))
            )
        finally:
            if admitted is None:
                await to_completion(self._catalogue.abandon(publication))
        return admitted

    async def _fetch(self, row: TransferRow, patience: StoreRetries) -> StagedObject:
        staged: StagedObject | None = None
        try:
            async with self._source.open(row.source) as found:
                progress = Progress(found.size or 0, self._clock)
                self._running[row.model_uuid] = (row, progress)

                def count(length: int) -> None:
                    progress.add(length)
                    patience.add(length)

                patience.begin()
                staged = await self._store.stage(checked_chunks(found.chunks, count), expected_size=found.size)
                patience.staged()
        except BaseException:
            # Also the closing of the source can fail or be cancelled, when all bytes are there.
            if staged is not None:
                await _quietly("discard staged bytes", staged.discard())
            raise
        finally:
            self._running.pop(row.model_uuid, None)
        return staged

    async def _fail(self, model_uuid: str, attempt: int, shown_source: str, error: Exception) -> None:
        reason = transfer_error(error, shown_source)
        unexpected = error if reason is not error and reason.code.name == "INTERNAL" else None
        log.warning("transfer failed", model_uuid=model_uuid, error=str(reason), exc_info=unexpected)
        self._forget(model_uuid, attempt)
        failed = await self._until_written(lambda: self._transfers.fail(model_uuid, attempt, reason))
        if failed is not None:
            self._changes.download(download_message(failed))

    async def _until_written(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step that writes to the database, again and again while the database fails."""
        failures = 0
        while True:
            try:
                return await step()
            except Exception as error:
                if not is_outage(error):
                    raise
                failures += 1
                report_failure("write a transfer's state", error)
            await asyncio.sleep(backoff(failures))

    async def _tell_progress(self) -> None:
        for row, progress in list(self._running.values()):
            self._changes.download(download_message(row, progress))

    async def _write_progress(self) -> None:
        for row, progress in list(self._running.values()):
            await self._transfers.progress(row.model_uuid, row.attempt, done=progress.done, total=progress.total)

    async def _renew_claims(self) -> None:
        if self._tasks or self._tries:
            await self._transfers.renew()
            await self._catalogue.renew()

    async def _sweep(self) -> None:
        await self._forget_setbacks()
        if self._store_health.usable:
            await self._catalogue.sweep()

    async def _forget_setbacks(self) -> None:
        """Drop those of attempts that did not end by their worker, but were cancelled, deleted or ended by another process."""
        for model_uuid, attempt in self._setbacks.keys() | self._tries.keys():
            row = await self._transfers.find(model_uuid)
            if row is None or row.attempt != attempt or row.state not in ACTIVE:
                self._forget(model_uuid, attempt)

    def _forget(self, model_uuid: str, attempt: int) -> None:
        self._setbacks.pop((model_uuid, attempt), None)
        self._tries.pop((model_uuid, attempt), None)


def _waiting(error: StoreError, row: TransferRow) -> MeshError:
    reason = transfer_error(error, row.shown_source)
    reason.message = f"waits for the object store: {reason.message}"
    return reason


def is_outage(error: Exception) -> bool:
    """Whether a step failed because the database does not work now, so that the same step may succeed later."""
    if isinstance(error, MeshError):
        return error.code is grpc.StatusCode.UNAVAILABLE
    return isinstance(error, OSError | TimeoutError)


def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a transfer, once: a second cancellation would interrupt the cleaning up after the first."""
    if not task.cancelling():
        task.cancel()


async def _quietly(name: str, work: Awaitable[None]) -> None:
    """Clean up; what fails is removed by the store's next sweep and must not change how a transfer ends."""
    try:
        await work
    except StoreError as error:
        report_failure(name, error)
