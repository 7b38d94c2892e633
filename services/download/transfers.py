"""The transfers in SQL: desired and observed state of each download, and the transitions between states.

Calls start and cancel transfers by changing the row; the worker reconciles its tasks with the rows (see `worker`).

Invariant: every transition by a run names its attempt and its process. It changes nothing if the row has a later attempt or belongs to
another process by then (see `claims`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason, name_of
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from services.download import kept_parts
from services.download.aliases import check_no_alias, lock_names
from services.download.claims import Claims
from services.download.killed_runs import note_run
from services.download.start_limits import MAX_UNENDED, refuse_too_many, remove_surplus
from services.download.tables import ACTIVE, UNENDED, ModelRow, TransferRow, TransferState
from services.download.transfer_requests import TransferRequest, apply, must_start, queue_paused, return_to_model

_MAX_MESSAGE = 2_000
_LISTING = Listing("downloads", BY_TIME)
_ORDER = (TransferRow.create_time, TransferRow.model_uuid)
_SHOWN = TransferRow.hidden.is_(False)


class Transfers:
    """The rows. `clock` returns the time in UTC; `owner_id` identifies this process among those that share the tables."""

    def __init__(self, database: Database, clock: Callable[[], datetime], owner_id: str) -> None:
        self._database = database
        self._clock = clock
        self.claims = Claims(database, owner_id)

    async def start(self, request: TransferRequest) -> TransferRow:
        """Start a transfer unless the present one serves the request.

        Raises DOWNLOAD_CONFLICT, MODEL_NAME_TAKEN, TOO_MANY_JOBS, and DOWNLOAD_NOT_FOUND without a source.
        """
        try:
            return await self._start(request)
        except IntegrityError:
            # Another call inserted the row at the same moment: compare with that row.
            return await self._start(request)

    async def _start(self, request: TransferRequest) -> TransferRow:
        async with self._database.begin() as session:
            await lock_names(self._database, session)
            row = await session.get(TransferRow, request.model_uuid, with_for_update=True)
            model = await session.get(ModelRow, request.model_uuid)
            left = kept_parts.left_by(row)
            if row is not None and model is not None:
                return_to_model(row, model, request)
            if not must_start(row, model is not None, request):
                assert row is not None
                row.hidden = False
                if row.state == TransferState.PAUSED:
                    queue_paused(row, self._clock())
                return row
            if row is None and not request.source:
                raise _not_found(request.model_uuid)
            await refuse_too_many(session, request.requested_by)
            if row is None:
                # Random, so that a run of a deleted row of the same model has another attempt than this row.
                first = secrets.randbelow(2**30)
                row = TransferRow(
                    model_uuid=request.model_uuid,
                    source="",
                    projector="",
                    adapters=[],
                    name="",
                    expected_sha256="",
                    fetched_with={},
                    attempt=first,
                )
                session.add(row)
            apply(row, model is not None, request)
            row.bytes_total = 0
            if left is not None and left.serve(row):
                await kept_parts.pass_on(session, row)
                row.bytes_total = left.bytes_total
            self._renew(row, request.requested_by)
            await check_no_alias(session, row.model_uuid, row.name)
            return row

    def _renew(self, row: TransferRow, requested_by: str) -> None:
        row.state = TransferState.QUEUED
        row.attempt += 1
        row.resume_count = row.bytes_done = row.killed_runs = row.killed_bytes = 0
        row.sha256 = row.revision = row.error_reason = row.error_message = ""
        row.drop_claim()
        row.hidden = False
        row.requested_by = requested_by
        row.create_time = row.update_time = self._clock()

    async def find(self, model_uuid: str) -> TransferRow | None:
        """Return the last transfer of a model; None if there is none."""
        async with self._database.read() as session:
            return await session.scalar(select(TransferRow).where(TransferRow.model_uuid == model_uuid, _SHOWN))

    async def get(self, model_uuid: str) -> TransferRow:
        """Return the last transfer of a model. Raises DOWNLOAD_NOT_FOUND."""
        row = await self.find(model_uuid)
        if row is None:
            raise _not_found(model_uuid)
        return row

    async def page(self, page_query: PageQuery) -> tuple[Sequence[TransferRow], str]:
        """Return a page, newest first, and the token of the next page."""
        page = page_query.of(_LISTING)
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(select(TransferRow).where(_SHOWN), _ORDER, backwards=True))).all()
        return page.cut(rows, lambda row: (row.create_time, row.model_uuid))

    async def all(self) -> Sequence[TransferRow]:
        """Return all transfers by time of request."""
        async with self._database.read() as session:
            return (await session.scalars(select(TransferRow).where(_SHOWN).order_by(TransferRow.create_time))).all()

    async def unended_sources(self) -> Sequence[str]:
        """Return the sources of all files of all transfers that have not ended."""
        async with self._database.read() as session:
            rows = (await session.scalars(select(TransferRow).where(TransferRow.state.in_(UNENDED)))).all()
        return [
            source for row in rows for source in (row.source, row.projector, *(adapter for _, adapter in row.adapters))
        ]

    async def workable(self) -> Sequence[TransferRow]:
        """Return the active transfers that this process runs or may claim, by time of request.

        Those that are more than may start (rows of an earlier release) are left out until others have ended.
        """
        begun_first = (TransferRow.state == TransferState.QUEUED, TransferRow.create_time)
        query = select(TransferRow).where(*self.claims.workable()).order_by(*begun_first).limit(MAX_UNENDED)
        async with self._database.read() as session:
            return sorted(await session.scalars(query), key=lambda row: row.create_time)

    async def cancel(self, model_uuid: str, attempt: int | None = None) -> TransferRow:
        """Cancel a transfer, or only this attempt of it. Idempotent; no effect on one that has ended. Raises DOWNLOAD_NOT_FOUND."""
        async with self._database.begin() as session:
            row = await shown_row(session, model_uuid)
            if row.state in UNENDED and attempt in (None, row.attempt):
                row.state = TransferState.CANCELLED
                row.bytes_done = 0
                row.update_time = self._clock()
            return row

    async def delete(self, model_uuid: str) -> TransferRow:
        """Remove the record of a transfer that has ended. Raises DOWNLOAD_NOT_FOUND, and DOWNLOAD_NOT_ENDED before its end.

        If the model exists, the row is only hidden until the model is fetched or deleted: a later request is compared with its source, and
        the source repairs the model.
        """
        async with self._database.begin() as session:
            row = await shown_row(session, model_uuid)
            if row.state in UNENDED:
                raise MeshError(
                    Reason.ERROR_REASON_DOWNLOAD_NOT_ENDED,
                    f"the download of {model_uuid} is {row.state}: cancel it first",
                    {"modelUuid": model_uuid, "state": row.state},
                )
            if await session.get(ModelRow, model_uuid) is not None:
                row.hidden = True
            else:
                await session.delete(row)
            return row

    async def remove_surplus(self, requested_by: str) -> Sequence[TransferRow]:
        """Remove the records of a user that are too many, and return them (`start_limits`)."""
        async with self._database.begin() as session:
            return await remove_surplus(session, requested_by)

    async def begin(self, model_uuid: str, attempt: int) -> TransferRow | None:
        """Claim a transfer and begin with the bytes that it has kept. Its last run may have been interrupted (see `killed_runs`).

        Return None if it ended, was started again by a caller, is claimed by another process, or must wait for a transfer of one.
        """
        async with self._database.begin() as session:
            await self.claims.lock_begins(session)
            row = await self._workable_row(session, model_uuid, attempt)
            if row is None or await self.claims.must_wait(session, row):
                return None
            await note_run(session, row, self.claims.owner_id)
            row.state = TransferState.RUNNING
            row.error_reason = row.error_message = ""
            await self.claims.take(session, row)
            row.update_time = self._clock()
            return row

    async def requeue(
        self, model_uuid: str, attempt: int, error: MeshError | None, *, keep: bool = False, killed: bool = False
    ) -> TransferRow | None:
        """Queue a transfer again, with an error that has the reason to wait. With `keep`, only this process may begin it again.

        Without an error, only one whose run was interrupted; `killed`: see `note_run`.
        """
        async with self._database.begin() as session:
            row = await self._workable_row(session, model_uuid, attempt)
            if row is None or (error is None and row.state == TransferState.QUEUED):
                return None
            await note_run(session, row, self.claims.owner_id, killed=killed)
            row.state = TransferState.QUEUED
            row.error_reason = name_of(error.reason) if error else ""
            row.error_message = error.message[:_MAX_MESSAGE] if error else ""
            if keep:
                await self.claims.take(session, row)
            else:
                row.drop_claim()
            row.update_time = self._clock()
            return row

    async def opened(
        self, model_uuid: str, attempt: int, *, name: str, revision: str, total: int
    ) -> TransferRow | None:
        """Write the revision and the bytes of the opened source, and the name of the model unless it has one.

        Bytes show that the source has answered. Raises MODEL_NAME_TAKEN.
        """
        async with self._database.begin() as session:
            await lock_names(self._database, session)
            row = await current(session, model_uuid, attempt, self.claims.owner_id)
            if row is not None:
                if not row.name:
                    await check_no_alias(session, model_uuid, name)
                row.name = row.name or name
                row.revision, row.bytes_total = revision, total
            return row

    async def progress(
        self, model_uuid: str, attempt: int, *, done: int, total: int, verifying: bool = False
    ) -> TransferRow | None:
        """Write the progress; `verifying` means that all bytes have arrived."""
        async with self._database.begin() as session:
            row = await current(session, model_uuid, attempt, self.claims.owner_id)
            if row is not None and (verifying or row.state == TransferState.RUNNING):
                row.bytes_done, row.bytes_total = done, total
                row.state = TransferState.VERIFYING if verifying else TransferState.RUNNING
                row.update_time = self._clock()
            return row

    async def fail(
        self, model_uuid: str, attempt: int, error: MeshError, progress: tuple[int, int], *, keep_parts: bool = True
    ) -> TransferRow | None:
        """End a transfer as failed, with the reason of an error and its last progress (bytes done and in all).

        Without `keep_parts`, it gets its next attempt, which has none.
        """
        async with self._database.begin() as session:
            row = await self._workable_row(session, model_uuid, attempt)
            if row is not None:
                row.bytes_done, row.bytes_total = progress
                if not keep_parts:
                    row.attempt += 1
                    row.bytes_done = 0
                row.state = TransferState.FAILED
                row.error_reason = name_of(error.reason)
                row.error_message = error.message[:_MAX_MESSAGE]
                row.update_time = self._clock()
            return row

    async def _workable_row(self, session: AsyncSession, model_uuid: str, attempt: int) -> TransferRow | None:
        """Return the locked row of an attempt that this process runs or may claim; None if it is none of these."""
        same = (TransferRow.model_uuid == model_uuid, TransferRow.attempt == attempt)
        return await session.scalar(select(TransferRow).where(*same, *self.claims.workable()).with_for_update())


async def shown_row(session: AsyncSession, model_uuid: str) -> TransferRow:
    """Return the locked row of a transfer that callers see. Raises DOWNLOAD_NOT_FOUND."""
    row = await session.get(TransferRow, model_uuid, with_for_update=True)
    if row is None or row.hidden:
        raise _not_found(model_uuid)
    return row


async def current(session: AsyncSession, model_uuid: str, attempt: int, owner_id: str) -> TransferRow | None:
    """Return the locked row if this attempt is active and claimed by this process; None otherwise."""
    row = await session.get(TransferRow, model_uuid, with_for_update=True)
    counts = row is not None and row.attempt == attempt and row.state in ACTIVE and row.claimed_by == owner_id
    return row if counts else None


def _not_found(model_uuid: str) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_DOWNLOAD_NOT_FOUND, f"there is no download of {model_uuid}", {"modelUuid": model_uuid}
    )
