"""What the contract service keeps in memory: written in the end whatever fails, never older than a change, never without bound."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import func, select, text

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from services.contract.contracts import ConcurrencyLimits, Contracts
from services.contract.decisions import Decided, Decisions
from services.contract.policy import Refusal
from services.contract.tables import DecisionRow
from services.contract.usage import Account, Ledger, day_of

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
ACCOUNT = Account("2026-11-24", "ada", "smol", "")
REFUSED = [Refusal("CONCURRENCY_EXCEEDED", "too many", "wait", {"limit": "2"})]


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


async def test_usage_that_could_not_be_written_is_written_later_with_what_came_meanwhile(database: Database) -> None:
    ledger = Ledger(database)
    ledger.add(ACCOUNT, (10, 5))
    async with database.begin() as session:
        await session.execute(text("ALTER TABLE usage_day RENAME TO away"))
    with pytest.raises(Exception, match="usage_day"):
        await ledger.flush()
    ledger.add(ACCOUNT, None)
    async with database.begin() as session:
        await session.execute(text("ALTER TABLE away RENAME TO usage_day"))
    (row,), token = await ledger.page(None, NOW, NOW, 0, "")
    assert (row.requests, row.prompt_tokens, row.completion_tokens, row.unknown_requests) == (2, 10, 5, 1)
    assert token == ""


async def test_two_replicas_add_to_the_same_row(database: Database) -> None:
    one, other = Ledger(database), Ledger(database)
    for ledger in (one, other, one):
        ledger.add(ACCOUNT, (1, 2))
    await one.flush()
    (row,), _ = await other.page("ada", NOW, NOW, 0, "")
    assert (row.requests, row.prompt_tokens, row.completion_tokens) == (3, 3, 6)


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
    first = await decisions.record(Decided("ada", "check", "smol"))
    clock.now = NOW + timedelta(days=30)
    await decisions.prune()
    assert (await decisions.get("ada", first)).create_time == NOW
    clock.now += timedelta(seconds=1)
    await decisions.prune()
    rows, _ = await decisions.page(None, 0, "", refused_only=False)
    assert not rows
    for _ in range(6):
        clock.now += timedelta(seconds=1)
        last = await decisions.record(Decided("ada", "check", "smol"))
    await decisions.prune()
    rows, _ = await decisions.page(None, 0, "", refused_only=False)
    assert [row.decision_id for row in rows][0::2] == [last, f"dec_{int(last[4:]) - 2:06}"]


async def test_the_same_refusal_of_inference_is_written_once_a_minute(database: Database) -> None:
    clock = Clock()
    decisions = Decisions(database, clock, clock.new_id)

    async def written() -> int:
        await decisions.flush()
        async with database.begin() as session:
            return (await session.scalar(select(func.count()).select_from(DecisionRow))) or 0

    for _ in range(1000):
        decisions.note(Decided("ada", "infer", "smol", "ctr_1", REFUSED))
    decisions.note(Decided("bob", "infer", "smol", "ctr_1", REFUSED))
    assert await written() == 2
    clock.now += timedelta(seconds=60)
    decisions.note(Decided("ada", "infer", "smol", "ctr_1", REFUSED))
    assert await written() == 3


async def test_a_limit_is_read_once_and_anew_after_a_change_or_a_while(database: Database) -> None:
    clock = Clock()
    limits = ConcurrencyLimits(database, lambda: clock.seconds)
    contracts = Contracts(database, clock, clock.new_id, limits)
    row = await contracts.create("team", 2, [])
    assert await limits.limit(row.contract_id) == 2
    await contracts.update(row.contract_id, None, 5, [])
    assert await limits.limit(row.contract_id) == 5
    # Changed by another replica: seen after a while.
    async with database.begin() as session:
        await session.execute(text("UPDATE contract SET max_concurrent_requests = 7"))
    assert await limits.limit(row.contract_id) == 5
    clock.seconds += 5
    assert await limits.limit(row.contract_id) == 7
    await contracts.delete(row.contract_id)
    assert await limits.limit(row.contract_id) is None


async def test_a_limit_that_changes_while_it_is_read_is_not_kept_as_it_was(database: Database) -> None:
    clock = Clock()
    limits = ConcurrencyLimits(database, lambda: clock.seconds)
    contracts = Contracts(database, clock, clock.new_id, limits)
    row = await contracts.create("team", 2, [])
    read = database.read

    def read_and_change():
        limits.forget(row.contract_id)
        return read()

    database.read = read_and_change  # type: ignore[method-assign]
    assert await limits.limit(row.contract_id) == 2
    database.read = read  # type: ignore[method-assign]
    async with database.begin() as session:
        await session.execute(text("UPDATE contract SET max_concurrent_requests = 3"))
    assert await limits.limit(row.contract_id) == 3


async def test_a_database_that_is_away_leaves_known_limits_in_force(database: Database) -> None:
    clock = Clock()
    limits = ConcurrencyLimits(database, lambda: clock.seconds)
    row = await Contracts(database, clock, clock.new_id, limits).create("team", 2, [])
    assert await limits.limit(row.contract_id) == 2
    async with database.begin() as session:
        await session.execute(text("ALTER TABLE contract RENAME TO away"))
    clock.seconds += 5
    assert await limits.limit(row.contract_id) == 2
    with pytest.raises(Exception, match="contract"):
        await limits.limit("ctr_other")
