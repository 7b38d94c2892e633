"""The audit record of what was allowed and refused, and why; `llamesh why` shows it.

Invariant: the record is bounded in age and number. Inference requests are frequent, so only refusals of them are recorded, at most once a
minute for each subject, contract and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, inspect, select
from sqlalchemy.dialects import postgresql, sqlite

from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.logs import log
from llamesh.kit.pages import BY_TIME, Listing, PageQuery
from services.contract.memory_estimate import MemoryEstimate
from services.contract.refusals import PolicyRefusal
from services.contract.tables import Clock, DecisionRow, NewId, RowOwner

RETENTION = timedelta(days=30)
MAX_DECISIONS = 100_000
"""Maximum number of decisions that are kept; the oldest are deleted first."""
SUPPRESSION_WINDOW = timedelta(minutes=1)
"""Time for which an equal refusal of inference is not recorded again."""
MAX_SUPPRESSED = 10_000
"""Maximum number of refusals that new ones are compared with."""

MAX_QUEUED = 10_000
"""Maximum number of refusals that wait in memory to be written; if there are more, the oldest are dropped."""
MAX_BATCH = 500
"""Maximum number of refusals in one transaction."""

_INSERT: dict[str, Callable[[type[DecisionRow]], sqlite.Insert | postgresql.Insert]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
_ORDER = (DecisionRow.create_time, DecisionRow.decision_id)


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A decision. The fields are those of the message Decision in contract.proto."""

    subject: str
    action: str
    object: str
    contract_id: str = ""
    refusals: Sequence[PolicyRefusal] = ()
    memory: MemoryEstimate | None = None


class Decisions:
    """The decisions in SQL."""

    def __init__(self, database: Database, clock: Clock, new_id: NewId, *, most: int = MAX_DECISIONS) -> None:
        self._database = database
        self._insert = _INSERT[database.engine.dialect.name]
        self._clock = clock
        self._new_id = new_id
        self._most = most
        self._queued: list[DecisionRow] = []
        self._suppressed: dict[tuple[str, str, str], datetime] = {}

    async def record(self, decided: RecordedDecision) -> str:
        """Write a decision and return its id."""
        row = self._row(decided)
        async with self._database.begin() as session:
            session.add(row)
        return row.decision_id

    def enqueue(self, decided: RecordedDecision) -> None:
        """Keep a refusal of inference in memory for the next `flush`, unless an equal one was noted within `SUPPRESSION_WINDOW`."""
        now = self._clock()
        key = (decided.subject, decided.contract_id, decided.refusals[0].reason)
        if self._suppressed.get(key, now) > now:
            return
        if len(self._suppressed) >= MAX_SUPPRESSED:
            self._suppressed.clear()
        self._suppressed[key] = now + SUPPRESSION_WINDOW
        self._queued.append(self._row(decided))
        self._bound()

    async def flush(self) -> None:
        """Write the noted refusals."""
        if not self._queued:
            return
        left, self._queued = self._queued, []
        try:
            while left:
                await self._write(left[:MAX_BATCH])
                del left[:MAX_BATCH]
        except BaseException:
            self._queued[:0] = left
            self._bound()
            raise

    @property
    def pending(self) -> int:
        """Return the number of refusals that wait to be written."""
        return len(self._queued)

    async def _write(self, rows: Sequence[DecisionRow]) -> None:
        names = [column.key for column in inspect(DecisionRow).column_attrs]
        values = [{name: getattr(row, name) for name in names} for row in rows]
        # If the outcome of a commit is unknown, the same rows are written again.
        statement = self._insert(DecisionRow).values(values).on_conflict_do_nothing()
        async with self._database.begin() as session:
            await session.execute(statement)

    def _bound(self) -> None:
        surplus = len(self._queued) - MAX_QUEUED
        if surplus > 0:
            del self._queued[:surplus]
            log.warning("refusals dropped, because they could not be written", count=surplus)

    async def prune(self) -> None:
        """Delete decisions that are too old or too many."""
        eldest = select(DecisionRow.create_time).order_by(DecisionRow.create_time.desc()).offset(self._most).limit(1)
        async with self._database.begin() as session:
            await session.execute(delete(DecisionRow).where(DecisionRow.create_time < self._clock() - RETENTION))
            surplus = (await session.scalars(eldest)).first()
            if surplus:
                await session.execute(delete(DecisionRow).where(DecisionRow.create_time <= surplus))

    async def page(
        self, owner: RowOwner | None, page_query: PageQuery, *, refused_only: bool
    ) -> tuple[Sequence[DecisionRow], str]:
        """Return a page, newest first, and the token of the next page. If `owner` is None, decisions about all users."""
        page = page_query.of(Listing(f"decisions {owner!r} {refused_only}", BY_TIME))
        query = select(DecisionRow)
        if owner is not None:
            query = query.where(DecisionRow.subject == owner.name, DecisionRow.create_time >= owner.since)
        if refused_only:
            query = query.where(DecisionRow.allowed.is_(False))
        async with self._database.read() as session:
            rows = (await session.scalars(page.select(query, _ORDER, backwards=True))).all()
        return page.cut(rows, lambda row: (row.create_time, row.decision_id))

    async def get(self, owner: RowOwner | None, decision_id: str) -> DecisionRow:
        """Return a decision. Raises DECISION_NOT_FOUND also if it is about another user. `owner` None: about any user."""
        async with self._database.read() as session:
            row = await session.get(DecisionRow, decision_id)
        if row is None or not (owner is None or (row.subject == owner.name and row.create_time >= owner.since)):
            raise MeshError(
                Reason.ERROR_REASON_DECISION_NOT_FOUND,
                f"there is no decision {decision_id}",
                {"decisionId": decision_id},
            )
        return row

    def _row(self, decided: RecordedDecision) -> DecisionRow:
        return DecisionRow(
            decision_id=self._new_id("dec_"),
            create_time=self._clock(),
            subject=decided.subject[:128],
            action=decided.action,
            object=decided.object[:256],
            allowed=not decided.refusals,
            refusals=[asdict(refusal) for refusal in decided.refusals],
            memory=_parts(decided.memory),
            contract_id=decided.contract_id[:64],
        )


def _parts(memory: MemoryEstimate | None) -> dict[str, int] | None:
    return asdict(memory) | {"total_bytes": memory.total_bytes} if memory else None
