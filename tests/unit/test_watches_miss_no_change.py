"""ChangeFeed: every announced change is read, also one that comes during a read, and an outage of the database loses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from llamesh.kit import change_feed
from llamesh.kit.change_feed import ChangeFeed
from llamesh.kit.errors import MeshError, Reason

AWAY = MeshError(Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "no answer", {"component": "database"})
WRONG = MeshError(Reason.ERROR_REASON_INTERNAL, "a fault")


class Table:
    """What is read: a number, the failures of the next reads, and what happens during the next read."""

    def __init__(self) -> None:
        self.number = 0
        self.reads = 0
        self.failures: list[MeshError] = []
        self.during: Callable[[], None] = lambda: None

    async def read(self) -> int:
        self.reads += 1
        if self.failures:
            raise self.failures.pop(0)
        number = self.number
        during, self.during = self.during, lambda: None
        during()
        return number


@pytest.fixture
def table() -> Table:
    return Table()


async def next_of(states: AsyncIterator[int]) -> int:
    async with asyncio.timeout(5):
        return await anext(states)


async def test_each_watch_begins_with_the_present_state_and_reads_again_after_an_announcement(table: Table) -> None:
    feed = ChangeFeed(table.read)
    one, other = feed.states(), feed.states()
    assert [await next_of(one), await next_of(other)] == [0, 0]
    waiting = [asyncio.create_task(next_of(each)) for each in (one, other)]
    await asyncio.sleep(0)
    table.number = 1
    feed.announce()
    assert await asyncio.gather(*waiting) == [1, 1]
    assert table.reads == 4


async def test_a_change_during_a_read_is_read_once_more(table: Table) -> None:
    feed = ChangeFeed(table.read)

    def change() -> None:
        table.number = 1
        feed.announce()

    table.during = change
    states = feed.states()
    assert [await next_of(states), await next_of(states)] == [0, 1]


async def test_a_change_of_another_process_is_read_within_the_interval(table: Table) -> None:
    states = ChangeFeed(table.read, resync_seconds=0.01).states()
    assert await next_of(states) == 0
    table.number = 1
    assert await next_of(states) == 1


async def test_an_outage_fails_a_new_watch_and_delays_one_that_has_begun(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_feed, "RETRY_SECONDS", 0.01)
    feed = ChangeFeed(table.read)
    table.failures = [AWAY]
    with pytest.raises(MeshError):
        await next_of(feed.states())
    states = feed.states()
    assert await next_of(states) == 0
    table.number, table.failures = 1, [AWAY, AWAY]
    feed.announce()
    assert await next_of(states) == 1


async def test_any_other_failure_ends_the_watch(table: Table) -> None:
    feed = ChangeFeed(table.read)
    states = feed.states()
    await next_of(states)
    table.failures = [WRONG]
    feed.announce()
    with pytest.raises(MeshError):
        await next_of(states)
