"""A queued server is reconciled once more after the last event, and never twice at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from controller import work_queue
from controller.work_queue import WorkQueue

Make = Callable[[Callable[[str], Awaitable[None]]], WorkQueue]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[WorkQueue] = []

    def start(look: Callable[[str], Awaitable[None]]) -> WorkQueue:
        made.append(WorkQueue(look, workers=4))
        made[-1].start()
        return made[-1]

    yield start
    for each in made:
        await each.close()


async def test_causes_that_come_during_a_look_lead_to_one_more(make: Make) -> None:
    looks: list[str] = []
    go_on = asyncio.Event()

    async def look(name: str) -> None:
        looks.append(name)
        await go_on.wait()

    work = make(look)
    for _ in range(10):
        work.add("a")
    await asyncio.sleep(0.01)
    assert looks == ["a"]
    for _ in range(10):
        work.add("a")
    await asyncio.sleep(0.01)
    assert looks == ["a"]
    go_on.set()
    await asyncio.sleep(0.01)
    assert looks == ["a", "a"]


async def test_one_server_does_not_wait_for_another(make: Make) -> None:
    looks: list[str] = []
    stuck = asyncio.Event()

    async def look(name: str) -> None:
        looks.append(name)
        if name == "slow":
            await stuck.wait()

    work = make(look)
    for name in ("slow", "a", "b"):
        work.add(name)
    await asyncio.sleep(0.01)
    assert looks == ["slow", "a", "b"]


async def test_a_look_that_fails_is_tried_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_queue, "FIRST_RETRY", 0.001)
    done = asyncio.Event()
    looks: list[str] = []

    async def look(name: str) -> None:
        looks.append(name)
        if len(looks) < 3:
            raise OSError("away")
        done.set()

    make(look).add("a")
    await asyncio.wait_for(done.wait(), 5)
    assert looks == ["a"] * 3


async def test_a_later_time_is_replaced_by_a_look_before_it(make: Make) -> None:
    looks: list[float] = []

    async def look(name: str) -> None:
        looks.append(asyncio.get_running_loop().time())

    work = make(look)
    work.add_after("a", 0.05)
    work.add("a")
    await asyncio.sleep(0.1)
    assert len(looks) == 1
    work.add_after("a", 0.01)
    await asyncio.sleep(0.05)
    assert len(looks) == 2
