"""A fair queue serves groups in turn, known callers before strangers, and bounds how many wait."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

from services.gateway.fair_queue import FairQueue, QueueFullError, Requester


class Counter:
    """A place where turns are taken, one at a time."""

    def __init__(self, waiting: int = 100) -> None:
        self.turns = FairQueue(1, waiting)
        self.served: list[str] = []
        self.refused: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.open = asyncio.Event()

    async def ask(self, name: str, group: Hashable, *, known: bool = False) -> asyncio.Task[None]:
        async def one() -> None:
            try:
                async with self.turns.turn(Requester(group, known)):
                    await self.open.wait()
                    self.served.append(name)
            except QueueFullError:
                self.refused.append(name)

        self.tasks.append(asyncio.create_task(one()))
        for _ in range(3):
            await asyncio.sleep(0)
        return self.tasks[-1]

    async def end(self) -> list[str]:
        self.open.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        return self.served


async def test_a_group_with_many_requests_takes_turns_with_others() -> None:
    counter = Counter()
    for number in range(6):
        await counter.ask(f"a{number}", "a")
    for number in range(2):
        await counter.ask(f"b{number}", "b")
    await counter.ask("c0", "c")
    assert await counter.end() == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4", "a5"]


async def test_a_known_caller_does_not_wait_behind_strangers_and_leaves_them_every_other_turn() -> None:
    counter = Counter()
    for number in range(5):
        await counter.ask(f"s{number}", number)
    for number in range(3):
        await counter.ask(f"k{number}", "ada", known=True)
    assert await counter.end() == ["s0", "k0", "s1", "k1", "s2", "k2", "s3", "s4"]


async def test_a_full_queue_refuses_the_last_of_the_largest_group() -> None:
    counter = Counter(waiting=4)
    for number in range(6):
        await counter.ask(f"a{number}", "a")
    assert counter.refused == ["a5"]
    await counter.ask("b0", "b")
    assert counter.refused == ["a5", "a4"]
    assert await counter.end() == ["a0", "a1", "b0", "a2", "a3"]


async def test_strangers_of_many_groups_do_not_keep_a_known_caller_out() -> None:
    counter = Counter(waiting=4)
    for number in range(20):
        await counter.ask(f"s{number}", number)
    await counter.ask("owner", "owner", known=True)
    assert "owner" not in counter.refused
    assert len(counter.refused) == 16
    assert (await counter.end())[:2] == ["s0", "owner"]


async def test_known_callers_are_bounded_too() -> None:
    counter = Counter(waiting=4)
    for number in range(7):
        await counter.ask(f"k{number}", number, known=True)
    assert counter.refused == ["k5", "k6"]
    await counter.ask("s", "s")
    assert counter.refused[-1] == "s"
    await counter.end()


async def test_a_waiter_that_leaves_is_passed_over() -> None:
    counter = Counter()
    await counter.ask("first", "a")
    leaver = await counter.ask("leaver", "b")
    await counter.ask("last", "c")
    leaver.cancel()
    assert await counter.end() == ["first", "last"]


async def test_a_waiter_that_leaves_as_its_turn_comes_frees_the_turn() -> None:
    counter = Counter()
    async with counter.turns.turn(Requester("first", known=False)):
        leaver = await counter.ask("leaver", "b")
        await counter.ask("last", "c")
    leaver.cancel()  # its turn has come, and it has not begun
    assert await counter.end() == ["last"]
    async with asyncio.timeout(1), counter.turns.turn(Requester("d", known=False)):
        pass


async def test_the_queue_keeps_nothing_of_waiters_that_have_left() -> None:
    counter = Counter(waiting=3)
    for number in range(50):
        await counter.ask(f"s{number}", number)
    assert len(counter.turns._next_of) <= 4
    await counter.end()
    assert (counter.turns._waiting, counter.turns._next_of, counter.turns._free) == ([], {}, 1)
