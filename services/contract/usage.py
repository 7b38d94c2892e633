"""The ledger: tokens and requests by day, subject, model and contract, as Envoy reports them when a request has ended.

Entries are added up in memory and written in batches, so a request costs no SQL. Invariant: what could not be written stays to be written,
in bounded memory; only a process that is killed loses what it heard since it last wrote: a second, or the length of an outage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from llamesh.kit.database import Database
from llamesh.kit.pages import page_key, page_size, page_token
from services.contract.tables import UsageRow, beyond

_INSERT: dict[str, Callable[[type[UsageRow]], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_ORDER = (UsageRow.day, UsageRow.subject, UsageRow.model_name, UsageRow.contract_id)
MAX_PENDING = 100_000
"""Accounts that wait to be written (some 50 MB); what is used beyond them is counted together, by day."""
UNATTRIBUTED = "(not attributed)"
"""Model name of what is counted together."""
BATCH = 500
"""Accounts of one transaction: it ends well within the deadline of the database."""

_EPOCH = date(1970, 1, 1)


class Account(NamedTuple):
    """What usage is added up by."""

    day: str
    subject: str
    model_name: str
    contract_id: str


@dataclass(slots=True)
class Total:
    """What was used."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unknown_requests: int = 0

    def add(self, other: Total) -> None:
        """Add another total to this."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.unknown_requests += other.unknown_requests


class Ledger:
    """Usage in memory and in SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = _INSERT[database.engine.dialect.name]
        self._pending: dict[Account, Total] = {}

    def add(self, account: Account, tokens: tuple[int, int] | None) -> None:
        """Count one answered request with its tokens of prompt and answer; None where the answer did not say."""
        if account not in self._pending and len(self._pending) >= MAX_PENDING:
            account = Account(account.day, "", UNATTRIBUTED, "")
        total = self._pending.setdefault(account, Total())
        total.requests += 1
        if tokens is None:
            total.unknown_requests += 1
        else:
            total.prompt_tokens += tokens[0]
            total.completion_tokens += tokens[1]

    async def flush(self) -> None:
        """Write what has come; it stays to be written where that fails."""
        if not self._pending:
            return
        taken, self._pending = self._pending, {}
        # In one order, so that two replicas that write the same rows never wait for each other in a circle.
        left = sorted(taken.items())
        try:
            while left:
                await self._write(left[:BATCH])
                del left[:BATCH]
        except BaseException:
            for account, total in left:
                self._pending.setdefault(account, Total()).add(total)
            raise

    @property
    def pending(self) -> int:
        """Accounts that wait to be written."""
        return len(self._pending)

    async def page(
        self, subject: str | None, start: datetime, end: datetime, size: int, token: str
    ) -> tuple[Sequence[UsageRow], str]:
        """A page by day, subject, model and contract, of the days that `start` to `end` touch. `subject` None: everyone's."""
        await self.flush()
        first, last = start.astimezone(UTC).date().isoformat(), end.astimezone(UTC).date().isoformat()
        name = f"usage {subject!r} {first} {last}"
        query = select(UsageRow).where(UsageRow.day >= first, UsageRow.day <= last).order_by(*_ORDER)
        if subject is not None:
            query = query.where(UsageRow.subject == subject)
        key = page_key(name, token)
        if key:
            query = query.where(beyond(_ORDER, Account(*map(str, key))))
        async with self._database.read() as session:
            rows = (await session.scalars(query.limit(page_size(size) + 1))).all()
        if len(rows) <= page_size(size):
            return rows, ""
        end_row = rows[-2]
        return rows[:-1], page_token(name, end_row.day, end_row.subject, end_row.model_name, end_row.contract_id)

    async def _write(self, batch: Sequence[tuple[Account, Total]]) -> None:
        rows = [
            {
                **account._asdict(),
                "requests": total.requests,
                "prompt_tokens": total.prompt_tokens,
                "completion_tokens": total.completion_tokens,
                "unknown_requests": total.unknown_requests,
            }
            for account, total in batch
        ]
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
            await session.execute(statement)


def day_of(seconds: int) -> str:
    """The day in UTC of a moment, in seconds since 1970: "2026-11-24"."""
    return (_EPOCH + timedelta(days=seconds // 86_400)).isoformat()
