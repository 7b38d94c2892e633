"""The ledger: tokens and requests by day, subject, model and contract, from Envoy's reports of requests that have ended.

Usage is added up in memory and written in batches, so a request needs no SQL.

Invariant: a batch that could not be written is written later, within bounded memory, and counts once even if an interrupted commit took
effect. Only a killed process loses usage: the usage since its last write, which is a second or the length of an outage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from llamesh.kit.database import Base, Database
from llamesh.kit.errors import invalid_field
from llamesh.kit.pages import Listing, PageQuery
from services.contract.settlement import TokenUsage
from services.contract.tables import Clock, NewId, RowOwner, UsageBatchRow, UsageRow

_INSERT: dict[str, Callable[[type[Base]], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_ORDER = (UsageRow.day, UsageRow.subject, UsageRow.model_name, UsageRow.contract_id, UsageRow.uid)
MAX_PENDING = 100_000
"""Maximum number of accounts that wait in memory to be written (about 50 MB); usage of further accounts is counted together, by day."""
UNATTRIBUTED = "(not attributed)"
"""Model name of usage that is counted together."""
BATCHES_KEPT = timedelta(days=7)
"""How long the id of a written batch is kept: longer than a write can be repeated."""
MAX_BATCH = 500
"""Maximum number of accounts in one transaction, so that it ends well within the database's deadline."""

USAGE_WINDOW = timedelta(days=30)
"""Period of a list of usage if the request does not give one."""

_EPOCH = date(1970, 1, 1)


class Account(NamedTuple):
    """The key under which usage is added up."""

    day: str
    subject: str
    model_name: str
    contract_id: str
    uid: str = ""


@dataclass(slots=True)
class Total:
    """Usage of one account."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unknown_requests: int = 0


@dataclass(frozen=True, slots=True)
class _Batch:
    """The usage that one transaction writes."""

    batch_id: str
    totals: Sequence[tuple[Account, Total]]


class Ledger:
    """Usage in memory and in SQL."""

    def __init__(self, database: Database, clock: Clock, new_id: NewId) -> None:
        self._database = database
        self._clock = clock
        self._new_id = new_id
        self._insert = _INSERT[database.engine.dialect.name]
        self._pending: dict[Account, Total] = {}
        self._batch: _Batch | None = None
        """The batch that is being written or could not be written. It does not change until its write has succeeded."""
        self._turn = asyncio.Lock()

    def add(self, account: Account, used: TokenUsage) -> None:
        """Count one request."""
        if account not in self._pending and len(self._pending) >= MAX_PENDING:
            account = Account(account.day, "", UNATTRIBUTED, "")
        total = self._pending.setdefault(account, Total())
        total.requests += 1
        total.prompt_tokens += used.prompt_tokens
        total.completion_tokens += used.completion_tokens
        total.unknown_requests += not used.reported

    async def flush(self) -> None:
        """Write the usage in memory. If the write fails, the usage is kept for the next flush."""
        async with self._turn:
            while self._batch or self._pending:
                if self._batch is None:
                    self._batch = self._take()
                await self._write(self._batch)
                self._batch = None

    async def prune(self) -> None:
        """Delete the ids of batches that were written long ago."""
        async with self._database.begin() as session:
            old = UsageBatchRow.create_time < self._clock() - BATCHES_KEPT
            await session.execute(delete(UsageBatchRow).where(old))

    @property
    def pending(self) -> int:
        """Return the number of accounts that wait to be written."""
        return len(self._pending) + (len(self._batch.totals) if self._batch else 0)

    async def page(
        self, user: RowOwner | str | None, start: datetime | None, end: datetime | None, page_query: PageQuery
    ) -> tuple[Sequence[UsageRow], str]:
        """Return a page by day, subject, model and contract, of the days from `start` to `end`, and the token of the next page.

        `user` is one user, or the name of all users that have had it; None means all users. `end` defaults to now, `start` to
        `USAGE_WINDOW` before now. All pages of a list are of the same days, also after midnight: the token carries them. Raises
        INVALID_FIELD if the start is after the end.
        """
        await self.flush()
        listing = Listing(
            f"usage {user!r} {start and _utc_day(start)} {end and _utc_day(end)}", (str,) * (2 + len(_ORDER))
        )
        page = page_query.of(listing)
        if page.after is None:
            first, last = self._days(start, end)
        else:
            first, last = (str(day) for day in page.after[:2])
            page = replace(page, after=page.after[2:])
        query = select(UsageRow).where(UsageRow.day >= first, UsageRow.day <= last)
        if isinstance(user, str):
            query = query.where(UsageRow.subject == user)
        elif user is not None:
            earlier = and_(UsageRow.uid == "", UsageRow.subject == user.name, UsageRow.day >= _utc_day(user.since))
            query = query.where(or_(UsageRow.uid == user.uid, earlier))
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(query, _ORDER))).all()
        return page.cut(rows, lambda row: (first, last, row.day, row.subject, row.model_name, row.contract_id, row.uid))

    def _days(self, start: datetime | None, end: datetime | None) -> tuple[str, str]:
        """Return the first and the last day of a list that begins now."""
        now = self._clock()
        start, end = start or now - USAGE_WINDOW, end or now
        if start > end:
            raise invalid_field("start_time", "is after end_time")
        return _utc_day(start), _utc_day(end)

    def _take(self) -> _Batch:
        accounts = list(islice(self._pending, MAX_BATCH))
        # Sorted, so that two replicas that write the same rows cannot deadlock.
        totals = [(account, self._pending.pop(account)) for account in sorted(accounts)]
        return _Batch(self._new_id("use_"), totals)

    async def _write(self, batch: _Batch) -> None:
        rows = [
            {
                **account._asdict(),
                "requests": total.requests,
                "prompt_tokens": total.prompt_tokens,
                "completion_tokens": total.completion_tokens,
                "unknown_requests": total.unknown_requests,
            }
            for account, total in batch.totals
        ]
        first_time = (
            self._insert(UsageBatchRow)
            .values(batch_id=batch.batch_id, create_time=self._clock())
            .on_conflict_do_nothing()
            .returning(UsageBatchRow.batch_id)
        )
        statement = self._insert(UsageRow).values(rows)
        new = statement.excluded
        statement = statement.on_conflict_do_update(
            index_elements=list(_ORDER),
            set_={
                "requests": UsageRow.requests + new.requests,
                "prompt_tokens": UsageRow.prompt_tokens + new.prompt_tokens,
                "completion_tokens": UsageRow.completion_tokens + new.completion_tokens,
                "unknown_requests": UsageRow.unknown_requests + new.unknown_requests,
            },
        )
        async with self._database.begin() as session:
            if (await session.execute(first_time)).first() is not None:
                await session.execute(statement)


def _utc_day(moment: datetime) -> str:
    return moment.astimezone(UTC).date().isoformat()


def day_of(seconds: int) -> str:
    """Return the UTC day of a time in seconds since 1970: "2026-11-24"."""
    return (_EPOCH + timedelta(days=seconds // 86_400)).isoformat()
