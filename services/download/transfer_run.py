"""One run of a transfer, from its source to a model: fetch, verify, publish, record.

The worker starts a run as a task for a row of the transfer table. The run claims the row, stages the files of the source (`fetches`),
checks hashes and GGUF headers, publishes the objects and records model and success together. A run without success leaves its row in one
of two states: FAILED with a reason, or QUEUED until the source or the store may be tried again (see `retry_backoffs`).

Invariant: a short outage of the database or the store does not fail a transfer. Writes to an unavailable database are retried without
limit, because the bytes have been fetched; a transfer waits for an unavailable object store for at most STORE_PATIENCE_SECONDS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from llamesh.kit.completion import to_completion
from llamesh.kit.errors import MeshError
from llamesh.kit.gguf import GgufMetadata
from llamesh.kit.logs import log
from llamesh.kit.objects import (
    ObjectNotFoundError,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    StoreShortError,
    StoreUnavailableError,
)
from llamesh.kit.outages import until_written
from llamesh.part_names import whole_name
from services.download.changes import Changes
from services.download.fetches import Fetches, StagedFile, discard
from services.download.killed_runs import refusal
from services.download.messages import download_message, gguf_fields, model_message
from services.download.model_names import default_name
from services.download.partial_objects import PartialObjects
from services.download.progress import Progress
from services.download.publications import PublicationLostError, Publications, PublishedFile
from services.download.retry_backoffs import RetryBackoffs, TransferAttempt, attempt_of
from services.download.room import RoomTakenError
from services.download.source_retries import MAX_TRIES, SourceRetries
from services.download.sources import SourceError, SourceGoneError, SourceObject, SourceRefusedError
from services.download.sources.shown_texts import shown_text
from services.download.store_health import StoreHealth
from services.download.store_retries import StoreRetries
from services.download.tables import TransferRow
from services.download.transfers import Transfers
from services.download.verification import transfer_error, verify

STORE_PATIENCE_SECONDS = 600.0
"""Seconds for which a transfer waits for an object store that fails; time in which the store works does not count."""

T = TypeVar("T")


class TransferRuns:
    """Runs transfers and broadcasts their state to watchers."""

    def __init__(
        self,
        transfers: Transfers,
        publications: Publications,
        health: StoreHealth,
        fetches: Fetches,
        changes: Changes,
        waits: RetryBackoffs,
        partial_objects: PartialObjects | None,
    ) -> None:
        self._transfers = transfers
        self._publications = publications
        self._health = health
        self._fetches = fetches
        self._changes = changes
        self._waits = waits
        self._partial = partial_objects
        self.holds = fetches.holds

    def progress(self, model_uuid: str) -> Progress | None:
        """Return the progress of a transfer that is being fetched; None if it is not."""
        fetch = self._fetches.running.get(model_uuid)
        return fetch.progress if fetch else None

    async def run(self, attempt: TransferAttempt) -> None:
        """Run one attempt. When it returns, the row has the result or the reason to wait."""
        row = await self._transfers.begin(*attempt)
        if row is None:
            return
        self._changes.download(download_message(row))
        log.info("transfer begins", model_uuid=row.model_uuid, source=row.shown_source, resumed=row.resume_count)
        if (refused := refusal(row)) is not None:
            await self.fail(row, refused)
            return
        retries = self._waits.of_store.get(attempt) or StoreRetries(self._waits.clock)
        try:
            await self._transfer(row, retries)
        except (StoreUnavailableError, StoreShortError, ObjectNotFoundError, PublicationLostError) as error:
            await self._retry_store(row, retries, error)
        except RoomTakenError as error:
            await self._wait_for_room(row, error)
        except SourceError as error:
            await self._retry_source(row, error)
        except Exception as error:
            if isinstance(error, StoreDeniedError):
                self._health.report(error)
            await self.fail(row, error)
        else:
            self._waits.forget(attempt)

    async def fail(self, row: TransferRow, error: Exception, *, keep_parts: bool = True) -> None:
        """End a transfer as failed, with the reason of an error. Without `keep_parts`, no later start needs its parts."""
        reason = transfer_error(error, row.shown_source)
        unexpected = error if reason is not error and reason.code.name == "INTERNAL" else None
        log.warning("transfer failed", model_uuid=row.model_uuid, error=str(reason), exc_info=unexpected)
        self._waits.forget(attempt_of(row))
        full = isinstance(error, StoreFullError)
        if full and self._partial is not None:
            # Before the row is written: the database may be on the same disk.
            await self._partial.free(row)
        progress = row.bytes_done, row.bytes_total
        failed = await _until_written(
            partial(self._transfers.fail, *attempt_of(row), reason, progress, keep_parts=keep_parts and not full)
        )
        self.broadcast(failed)

    async def requeue(self, row: TransferRow, reason: MeshError, *, keep: bool = False) -> None:
        """Queue a transfer again with the reason for which it waits. With `keep`, only this process may begin it."""
        self.broadcast(await self._transfers.requeue(row.model_uuid, row.attempt, reason, keep=keep))

    async def requeue_for_store(self, row: TransferRow, error: StoreError) -> None:
        """Queue a transfer again until the object store works."""
        await self.requeue(row, _waiting(error, row))

    def broadcast(self, row: TransferRow | None) -> None:
        """Broadcast the state of a transfer."""
        if row is not None:
            self._changes.download(download_message(row))

    async def broadcast_end(self, model_uuid: str) -> None:
        """Broadcast the state of a stopped transfer, or that its record was removed in the meantime."""
        while True:
            with self._changes.watch() as meanwhile:
                row = await self._transfers.find(model_uuid)
            # Read again if something newer was broadcast during the read, such as the removal of the record.
            if model_uuid not in meanwhile.unread_models():
                break
        self.broadcast(row)
        if row is None:
            self._changes.removed_download(model_uuid)

    async def broadcast_waits(self, models: Set[str], words: Mapping[str, str]) -> None:
        """Broadcast the transfers of models, with the words for what some of them wait."""
        with self._changes.watch() as meanwhile:
            rows = await self._transfers.workable()
        for row in rows:
            if row.model_uuid in models - meanwhile.unread_models():
                self._changes.download(download_message(row, wait_words=words.get(row.model_uuid, "")))

    async def broadcast_progress(self) -> None:
        """Broadcast the progress of the running transfers."""
        for fetch in list(self._fetches.running.values()):
            self._changes.download(download_message(fetch.row, fetch.progress))

    async def write_progress(self) -> None:
        """Write the progress of the running transfers to their rows."""
        for fetch in list(self._fetches.running.values()):
            row, progress = fetch.row, fetch.progress
            await self._transfers.progress(row.model_uuid, row.attempt, done=progress.done, total=progress.total)

    async def _retry_source(self, row: TransferRow, error: SourceError) -> None:
        """Queue the transfer again if another try of the source may help and is allowed; otherwise fail it."""
        reason = transfer_error(error, row.shown_source)
        # A source that has answered before is away for a time; the address of one that never has is more likely wrong.
        answered = bool(row.bytes_total) or attempt_of(row) in self._waits.of_source
        if error.transient or (error.unreachable and answered):
            retries = self._waits.of_source.setdefault(attempt_of(row), SourceRetries(self._waits.clock))
            wait = retries.next_wait(error.retry_after)
            if wait is not None:
                log.warning("transfer waits for its source", model_uuid=row.model_uuid, error=str(reason), seconds=wait)
                reason.message = (
                    f"tries again in {wait:.0f} s, {retries.failed} of {MAX_TRIES} tries failed: {reason.message}"
                )
                await _until_written(partial(self.requeue, row, reason, keep=True))
                return
            reason.message += f" (given up after {retries.failed} tries)"
        await self.fail(row, reason, keep_parts=not isinstance(error, (SourceGoneError, SourceRefusedError)))

    async def _wait_for_room(self, row: TransferRow, error: RoomTakenError) -> None:
        """Queue the transfer again until a transfer that has reserved room ends."""
        log.info("transfer waits for room", model_uuid=row.model_uuid, error=str(error))
        self._waits.wait_for_room(attempt_of(row))
        reason = transfer_error(error, row.shown_source)
        reason.message = f"waits for other downloads: {reason.message}"
        await _until_written(partial(self.requeue, row, reason))

    async def _retry_store(
        self, row: TransferRow, retries: StoreRetries, error: StoreError | PublicationLostError
    ) -> None:
        """Queue the transfer again, because only the store failed; fail it if the store has failed for too long."""
        if isinstance(error, PublicationLostError):
            error = StoreUnavailableError(str(error))
        if retries.failed() > STORE_PATIENCE_SECONDS:
            await self.fail(row, error)
            return
        self._waits.of_store[attempt_of(row)] = retries
        log.warning("transfer waits for the object store", model_uuid=row.model_uuid, error=shown_text(str(error)))
        await _until_written(partial(self.requeue_for_store, row, error))
        if isinstance(error, StoreUnavailableError):
            self._health.report(error)

    async def _transfer(self, row: TransferRow, retries: StoreRetries) -> None:
        files = await self._fetches.fetch(row, retries, self._opened)
        try:
            size = sum(file.staged.size for file in files)
            verifying = await _until_written(
                lambda: self._transfers.progress(row.model_uuid, row.attempt, done=size, total=size, verifying=True)
            )
            if verifying is None:
                return
            self.broadcast(verifying)
            metadata = await to_completion(verify([(file.role, file.staged) for file in files]))
            await self._publish(files, metadata, row)
        finally:
            await discard(files)

    async def _publish(self, files: Sequence[StagedFile], metadata: GgufMetadata, row: TransferRow) -> None:
        """Publish verified files, record the model and tell the watchers.

        A cancellation takes effect between two steps only, so it finds what was published, and a success is always told.
        """
        published: list[PublishedFile] = []

        async def publish(file: StagedFile) -> None:
            # Files of one model may have the same bytes.
            same = [each.object for each in published if each.object.sha256 == file.staged.sha256]
            done = same[0] if same else await self._publications.publish(file.staged)
            published.append(PublishedFile(file.role, file.name, done, file.source_version, file.quality))

        recorded = False
        try:
            for file in files:
                await _until_written(partial(_completed, publish, file))
            # Before the success can be seen, so that a success leaves nothing behind.
            await discard(files)
            facts = {"gguf": gguf_fields(metadata), "source_facts": asdict(files[0].facts)}
            recorded = await _until_written(partial(_completed, self._record, published, facts, row))
        finally:
            if not recorded:
                for each in published:
                    await to_completion(self._publications.abandon(each.object))

    async def _record(self, published: Sequence[PublishedFile], facts: dict[str, Any], row: TransferRow) -> bool:
        """Record the model and tell the watchers. Return False if the transfer was ended by others meanwhile."""
        recorded = await self._publications.record(published, facts, row)
        if recorded is None:
            return False
        model, transfer = recorded
        log.info("transfer succeeded", model_uuid=row.model_uuid, sha256=model.sha256, bytes=model.size_bytes)
        self._changes.model(model_message(model))
        self.broadcast(transfer)
        return True

    async def _opened(self, row: TransferRow, found: SourceObject, total: int) -> None:
        """Record what the open source reports: its revision, its bytes, and the file's name if the caller gave no name.

        The bytes are recorded here, not with the first progress: a transfer that is paused before has them, too.
        """
        if not row.name or (found.revision, total) != (row.revision, row.bytes_total):
            name = default_name(whole_name(found.name), row.model_uuid)
            opened = partial(self._transfers.opened, *attempt_of(row), name=name, revision=found.revision, total=total)
            self.broadcast(await _until_written(opened))


async def _completed(step: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    return await to_completion(step(*arguments))


async def _until_written(step: Callable[[], Awaitable[T]]) -> T:
    """Repeat a step that writes to the database, with a backoff, until it succeeds."""
    return await until_written(step, "write a transfer's state")


def _waiting(error: StoreError, row: TransferRow) -> MeshError:
    reason = transfer_error(error, row.shown_source)
    reason.message = f"waits for the object store: {reason.message}"
    return reason
