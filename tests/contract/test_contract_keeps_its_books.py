"""What the contract service keeps in memory: written in the end whatever fails, never older than a change, never without bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.database_failures import unavailable, unreachable
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import PageQuery, Pages
from llamesh.kit.serving import Member
from services.contract import decisions as decisions_module
from services.contract import usage
from services.contract.books import Books
from services.contract.contracts import Contracts
from services.contract.decisions import Decisions, RecordedDecision
from services.contract.refusals import PolicyRefusal
from services.contract.service import new_id
from services.contract.settlement import TokenUsage
from services.contract.tables import DecisionRow, UsageBatchRow, UsageRow
from services.contract.terms_cache import TermsCache
from services.contract.usage import Account, Ledger, day_of
from tests.contract.patience import PATIENCE

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
FIRST_PAGE = PageQuery(Pages(b"any key"))
ACCOUNT = Account("2026-11-24", "ada", "smol", "")
REFUSED = [PolicyRefusal("CONCURRENCY_EXCEEDED", "too many", "wait", {"limit": "2"})]


def contracts_of(database, clock, limits) -> Contracts:
    """Contracts that nobody uses."""

    async def nobody(contract_id: str) -> int:
        return 0

    return Contracts(database, clock, clock.new_id, limits, nobody, lambda key: None)


async def limit_of(limits: TermsCache, contract_id: str) -> int | None:
    """Requests at the same time that a contract allows; None if it is not there."""
    terms = await limits.get(contract_id)
    return terms.max_concurrent_requests if terms else None


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW
        self.seconds = 0.0
        self._numbers = count()

    def __call__(self) -> datetime:
        return self.now

    def new_id(self, prefix: str) -> str:
        return f"{prefix}{next(self._numbers):06}"


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    database = open_database(settings, "contract")
    await database.migrate("services.contract")
    yield database
    await database.close()


async def test_migrating_again_changes_nothing(database: Database) -> None:
    await database.migrate("services.contract")


async def test_usage_that_could_not_be_written_is_written_with_later_usage(database: Database) -> None:
    ledger = Ledger(database, Clock(), new_id)
    ledger.add(ACCOUNT, TokenUsage(10, 5))
    async with database.begin() as session:
        await session.execute(text("ALTER TABLE usage_day RENAME TO away"))
    with pytest.raises(Exception, match="usage_day"):
        await ledger.flush()
    ledger.add(ACCOUNT, TokenUsage(0, 0, reported=False))
    async with database.begin() as session:
        await session.execute(text("ALTER TABLE away RENAME TO usage_day"))
    (row,), token = await ledger.page(None, NOW, NOW, FIRST_PAGE)
    assert (row.requests, row.prompt_tokens, row.completion_tokens, row.unknown_requests) == (2, 10, 5, 1)
    assert token == ""


async def test_two_replicas_add_to_the_same_row(database: Database) -> None:
    one, other = Ledger(database, Clock(), new_id), Ledger(database, Clock(), new_id)
    for ledger in (one, other, one):
        ledger.add(ACCOUNT, TokenUsage(1, 2))
    await one.flush()
    (row,), _ = await other.page("ada", NOW, NOW, FIRST_PAGE)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (3, 3, 6)


@pytest.mark.parametrize("start", [None, NOW - timedelta(days=30)])
@pytest.mark.parametrize("end", [None, NOW])
async def test_pages_of_usage_are_of_the_same_days_after_midnight(
    database: Database, start: datetime | None, end: datetime | None
) -> None:
    clock = Clock()
    ledger = Ledger(database, clock, new_id)
    first, last = "2026-10-25", "2026-11-24"
    for day, subject in [("2026-10-24", "eve"), (first, "ada"), (first, "bob"), (last, "ada"), ("2026-11-25", "ada")]:
        ledger.add(Account(day, subject, "smol", ""), TokenUsage(1, 2))
    seen: list[tuple[str, str]] = []
    token = ""
    while token or not seen:
        rows, token = await ledger.page(None, start, end, PageQuery(FIRST_PAGE.pages, 1, token))
        seen += [(row.day, row.subject) for row in rows]
        clock.now = NOW + timedelta(days=1)
    assert seen == [(first, "ada"), (first, "bob"), (last, "ada")]


async def test_a_token_of_usage_is_refused_for_another_period(database: Database) -> None:
    ledger = Ledger(database, Clock(), new_id)
    for subject in ("ada", "bob"):
        ledger.add(ACCOUNT._replace(subject=subject), TokenUsage(1, 2))
    _, token = await ledger.page(None, None, NOW, PageQuery(FIRST_PAGE.pages, 1))
    for start, end in [(None, None), (NOW, NOW), (None, NOW + timedelta(days=1))]:
        with pytest.raises(MeshError) as caught:
            await ledger.page(None, start, end, PageQuery(FIRST_PAGE.pages, 1, token))
        assert caught.value.reason == Reason.ERROR_REASON_INVALID_PAGE_TOKEN


def test_a_day_is_that_of_utc() -> None:
    assert [day_of(n) for n in (0, 86_399, 86_400, 1_795_521_600)] == [
        "1970-01-01",
        "1970-01-01",
        "1970-01-02",
        "2026-11-24",
    ]


async def test_decisions_are_kept_thirty_days_and_never_more_than_so_many(database: Database) -> None:
    clock = Clock()
    decisions = Decisions(database, clock, clock.new_id, most=3)
    first = await decisions.record(RecordedDecision("ada", "check", "smol"))
    clock.now = NOW + timedelta(days=30)
    await decisions.prune()
    assert (await decisions.get(None, first)).create_time == NOW
    clock.now += timedelta(seconds=1)
    await decisions.prune()
    rows, _ = await decisions.page(None, FIRST_PAGE, refused_only=False)
    assert not rows
    for _ in range(6):
        clock.now += timedelta(seconds=1)
        last = await decisions.record(RecordedDecision("ada", "check", "smol"))
    await decisions.prune()
    rows, _ = await decisions.page(None, FIRST_PAGE, refused_only=False)
    assert [row.decision_id for row in rows][0::2] == [last, f"dec_{int(last[4:]) - 2:06}"]


async def test_the_same_refusal_of_inference_is_written_once_a_minute(database: Database) -> None:
    clock = Clock()
    decisions = Decisions(database, clock, clock.new_id)

    async def written() -> int:
        await decisions.flush()
        async with database.begin() as session:
            return (await session.scalar(select(func.count()).select_from(DecisionRow))) or 0

    for _ in range(1000):
        decisions.enqueue(RecordedDecision("ada", "infer", "smol", "ctr_1", REFUSED))
    decisions.enqueue(RecordedDecision("bob", "infer", "smol", "ctr_1", REFUSED))
    assert await written() == 2
    clock.now += timedelta(seconds=60)
    decisions.enqueue(RecordedDecision("ada", "infer", "smol", "ctr_1", REFUSED))
    assert await written() == 3


async def test_a_limit_is_read_once_and_anew_after_a_change_or_a_while(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.contract.terms_cache.STALE_PATIENCE", PATIENCE)
    clock = Clock()
    limits = TermsCache(database, lambda: clock.seconds)
    contracts = contracts_of(database, clock, limits)
    row = await contracts.create("team", 2, [])
    assert await limit_of(limits, row.contract_id) == 2
    await contracts.update(row.contract_id, None, 5, [])
    assert await limit_of(limits, row.contract_id) == 5
    # Changed by another replica: seen after a while.
    async with database.begin() as session:
        await session.execute(text("UPDATE contract SET max_concurrent_requests = 7"))
    assert await limit_of(limits, row.contract_id) == 5
    clock.seconds += 5
    assert await limit_of(limits, row.contract_id) == 7
    await contracts.delete(row.contract_id)
    assert await limit_of(limits, row.contract_id) is None


async def test_a_limit_that_changes_while_it_is_read_is_not_kept_as_it_was(database: Database) -> None:
    clock = Clock()
    limits = TermsCache(database, lambda: clock.seconds)
    contracts = contracts_of(database, clock, limits)
    row = await contracts.create("team", 2, [])
    read = database.read

    def read_and_change():
        limits.invalidate(row.contract_id)
        return read()

    database.read = read_and_change  # type: ignore[method-assign]
    assert await limit_of(limits, row.contract_id) == 2
    database.read = read  # type: ignore[method-assign]
    async with database.begin() as session:
        await session.execute(text("UPDATE contract SET max_concurrent_requests = 3"))
    assert await limit_of(limits, row.contract_id) == 3


class Fault:
    """A database that fails as long as it is told to."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: MeshError | None = None
        for name in ("begin", "read"):
            monkeypatch.setattr(database, name, self._failing(getattr(database, name)))

    def _failing(self, real: Callable[[], AbstractAsyncContextManager[AsyncSession]]) -> Callable[[], Any]:
        @asynccontextmanager
        async def guarded() -> AsyncIterator[AsyncSession]:
            if self.error is not None:
                raise self.error
            async with real() as session:
                yield session

        return guarded


FULL = MeshError(Reason.ERROR_REASON_STORAGE_FULL, "the disk is full")


async def test_a_database_that_is_away_leaves_known_limits_in_force(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    limits = TermsCache(database, lambda: clock.seconds)
    contracts = contracts_of(database, clock, limits)
    used, unused = await contracts.create("used", 2, []), await contracts.create("unused", 3, [])
    assert await limit_of(limits, used.contract_id) == 2
    await limits.refresh()
    fault = Fault(database, monkeypatch)
    fault.error = unreachable()
    for _ in range(3):
        clock.seconds += 5
        assert await limit_of(limits, used.contract_id) == 2
        # Also if no caller has read this limit before.
        assert await limit_of(limits, unused.contract_id) == 3
    with pytest.raises(MeshError) as caught:
        await limit_of(limits, "ctr_other")
    assert caught.value.reason == Reason.ERROR_REASON_COMPONENT_UNAVAILABLE
    fault.error = None
    await contracts.update(used.contract_id, None, 9, [])
    assert await limit_of(limits, used.contract_id) == 9


async def test_a_known_limit_does_not_wait_for_a_database_that_hangs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    limits = TermsCache(database, lambda: clock.seconds)
    row = await contracts_of(database, clock, limits).create("team", 2, [])
    assert await limit_of(limits, row.contract_id) == 2

    @asynccontextmanager
    async def hanging() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(database, "read", hanging)
    clock.seconds += 5
    async with asyncio.timeout(PATIENCE):
        assert await limit_of(limits, row.contract_id) == 2


@pytest.mark.parametrize("error", [unreachable(), FULL, unavailable("locked")], ids=["away", "full", "locked"])
async def test_nothing_that_was_counted_is_lost_by_a_flush_that_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: MeshError
) -> None:
    clock = Clock()
    ledger, decisions = Ledger(database, Clock(), new_id), Decisions(database, clock, clock.new_id)
    fault = Fault(database, monkeypatch)
    accounts = [Account("2026-11-24", f"user{number}", "smol", "") for number in range(1200)]
    for number, account in enumerate(accounts):
        ledger.add(account, TokenUsage(1, 2))
        decisions.enqueue(RecordedDecision(f"user{number}", "infer", "smol", "ctr_1", REFUSED))
    fault.error = error
    for write in (ledger.flush, decisions.flush):
        with pytest.raises(MeshError):
            await write()
    assert (ledger.pending, decisions.pending) == (1200, 1200)
    fault.error = None
    ledger.add(accounts[0], TokenUsage(1, 2))
    await ledger.flush()
    await decisions.flush()
    async with database.read() as session:
        totals = await session.execute(select(func.sum(UsageRow.requests), func.sum(UsageRow.prompt_tokens)))
        assert tuple(totals.one()) == (1201, 1201)
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(DecisionRow)) == 1200
    assert (ledger.pending, decisions.pending) == (0, 0)


async def test_a_batch_whose_commit_was_cut_off_is_counted_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(database, Clock(), new_id)
    begin = database.begin

    @asynccontextmanager
    async def cut_off() -> AsyncIterator[AsyncSession]:
        async with begin() as session:
            yield session
        raise unreachable()

    ledger.add(ACCOUNT, TokenUsage(10, 5))
    monkeypatch.setattr(database, "begin", cut_off)
    for _ in range(2):
        with pytest.raises(MeshError):
            await ledger.flush()
    monkeypatch.setattr(database, "begin", begin)
    ledger.add(ACCOUNT, TokenUsage(1, 1))
    (row,), _ = await ledger.page(None, NOW, NOW, FIRST_PAGE)
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (2, 11, 6)


async def test_batches_are_remembered_for_a_while(database: Database) -> None:
    clock = Clock()
    ledger = Ledger(database, clock, clock.new_id)
    ledger.add(ACCOUNT, TokenUsage(1, 1))
    await ledger.flush()
    for elapsed, kept in ((usage.BATCHES_KEPT, 1), (timedelta(seconds=1), 0)):
        clock.now += elapsed
        await ledger.prune()
        async with database.read() as session:
            assert await session.scalar(select(func.count()).select_from(UsageBatchRow)) == kept


async def test_usage_that_waits_for_the_database_is_bounded_and_still_counted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MAX_PENDING", 3)
    monkeypatch.setattr(decisions_module, "MAX_QUEUED", 3)
    clock = Clock()
    ledger, decisions = Ledger(database, Clock(), new_id), Decisions(database, clock, clock.new_id)
    for number in range(10):
        ledger.add(Account("2026-11-24", f"user{number}", "smol", ""), TokenUsage(1, 2))
        decisions.enqueue(RecordedDecision(f"user{number}", "infer", "smol", "ctr_1", REFUSED))
    assert (ledger.pending, decisions.pending) == (4, 3)
    rows, _ = await ledger.page(None, NOW, NOW, FIRST_PAGE)
    assert {row.model_name: row.requests for row in rows if row.subject == ""} == {usage.UNATTRIBUTED: 7}
    assert sum(row.requests for row in rows) == 10


async def test_the_last_flush_is_tried_until_the_drain_is_over(
    database: Database, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    member = Member("contract", settings.model_copy(update={"drain_seconds": 10 * PATIENCE}))
    ledger = Ledger(database, Clock(), new_id)
    books = Books(ledger, Decisions(database, Clock(), new_id), member.drain_left)
    ledger.add(ACCOUNT, TokenUsage(10, 5))
    fault = Fault(database, monkeypatch)
    fault.error = FULL
    member.stop()
    closing = asyncio.create_task(books.close())
    done, _ = await asyncio.wait({closing}, timeout=1)
    assert not done
    fault.error = None
    await asyncio.wait_for(closing, PATIENCE)
    async with database.read() as session:
        assert await session.scalar(select(func.sum(UsageRow.prompt_tokens))) == 10
