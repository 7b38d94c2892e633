"""A held request ends in one of four ways within its budget, and many requests wake a server only once. Clock and servers are fakes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from controller.demand import Demand
from controller.request_holder import (
    DEFAULT_BUDGET,
    PERMANENT_FAILURES,
    EngineReady,
    Refused,
    RequestHolder,
    TooManyHeld,
    UnknownTarget,
)
from controller.status_cache import StatusCache
from controller.wake_tasks import WakeTasks
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Condition, Server, ServerSpec

STARTING = server_pb2.SERVER_STATE_STARTING
READY = server_pb2.SERVER_STATE_READY
SLEEPING = server_pb2.SERVER_STATE_SLEEPING
STOPPING = server_pb2.SERVER_STATE_STOPPING
FAILING = server_pb2.SERVER_STATE_FAILING
DEGRADED = server_pb2.SERVER_STATE_DEGRADED
WALL = 1_800_000_000.0
"""Now, in seconds since 1970."""


def server(uuid: str = "a", state: int = STARTING, *, name: str = "smol", ready: int = 0, **more: Any) -> Server:
    reason, message = more.pop("reason", "Starting"), more.pop("message", "0 of 1 engines answer")
    due = Timestamp(seconds=int(WALL) + more.pop("next_start")) if "next_start" in more else None
    budget = Duration(seconds=more.pop("budget", 60))
    return Server(
        server_uuid=uuid,
        model_name=name,
        state=state,  # type: ignore[arg-type]
        ready_replicas=ready,
        spec=ServerSpec(wake_budget=budget if budget.seconds else None),
        conditions=[Condition(type="Ready", reason=reason, message=message)],
        next_start_time=due,
    )


class Bench:
    """A request holder with a status cache that the test writes."""

    def __init__(self, max_held: int = 100) -> None:
        self.statuses = StatusCache()
        self.now = 0.0
        self.woken: list[str] = []
        self.touched: list[str] = []
        self.demand = Demand()
        self.holder = RequestHolder(
            self.statuses,
            self.demand,
            WakeTasks(self.wake, self.demand),
            self.touched.append,
            lambda: self.now,
            max_held,
            lambda: WALL,
        )

    async def wake(self, server_uuid: str) -> None:
        self.woken.append(server_uuid)
        await asyncio.sleep(0)

    def hold(self, cluster: str = "s:a") -> asyncio.Task[Any]:
        return asyncio.create_task(self.holder.hold(cluster))

    async def settle(self) -> None:
        """Run all tasks until each of them waits."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("cluster", ["s:b", "m:other", "m:", "s:", "", "nonsense", "x:a"])
async def test_an_unknown_server_or_model_is_said_at_once(bench: Bench, cluster: str) -> None:
    bench.statuses.put(server())
    assert await bench.holder.hold(cluster) == UnknownTarget()


@pytest.mark.parametrize("cluster", ["s:a", "m:smol"])
async def test_an_engine_that_is_ready_lets_the_request_go(bench: Bench, cluster: str) -> None:
    bench.statuses.put(server(state=READY, ready=1))
    assert await bench.holder.hold(cluster) == EngineReady()
    assert bench.woken == []
    assert bench.touched == ["a"]


async def test_many_requests_wake_a_sleeping_server_once_and_are_let_go_together(bench: Bench) -> None:
    bench.statuses.put(server(state=SLEEPING))
    held = [bench.hold() for _ in range(50)]
    await bench.settle()
    assert bench.holder.held == 50
    assert bench.woken == ["a"]
    bench.statuses.put(server(state=STARTING))
    await bench.settle()
    assert bench.woken == ["a"]
    bench.statuses.put(server(state=READY, ready=1))
    assert await asyncio.gather(*held) == [EngineReady()] * 50
    assert bench.holder.held == 0


async def test_requests_are_held_until_the_engine_is_acknowledged(bench: Bench) -> None:
    bench.statuses.put(server(state=STARTING, ready=0))
    held = bench.hold()
    await bench.settle()
    assert not held.done()
    held.cancel()


async def test_a_server_that_is_starting_already_is_not_woken(bench: Bench) -> None:
    bench.statuses.put(server(state=STARTING))
    held = bench.hold()
    await bench.settle()
    assert bench.woken == []
    held.cancel()


async def test_a_server_that_falls_asleep_while_requests_wait_is_woken_again(bench: Bench) -> None:
    bench.statuses.put(server(state=STARTING))
    held = bench.hold()
    await bench.settle()
    bench.statuses.put(server(state=SLEEPING, reason="Asleep"))
    await bench.settle()
    assert bench.woken == ["a"]
    held.cancel()


async def test_the_end_of_the_budget_is_a_refusal_with_the_reason(bench: Bench) -> None:
    bench.statuses.put(server(message="0 of 1 engines answer: no such tensor"))
    held = bench.hold()
    await bench.settle()
    bench.now = 60.0
    bench.statuses.put(server(message="0 of 1 engines answer: out of memory"))
    verdict = await held
    assert isinstance(verdict, Refused)
    assert "out of memory" in verdict.message
    assert verdict.retry_after > 0


async def test_without_a_budget_of_its_own_a_server_has_the_default(bench: Bench) -> None:
    bench.statuses.put(server(budget=0))
    held = bench.hold()
    await bench.settle()
    bench.now = DEFAULT_BUDGET - 1
    bench.statuses.put(server(budget=0, message="x"))
    await bench.settle()
    assert not held.done()
    bench.now = DEFAULT_BUDGET
    bench.statuses.put(server(budget=0, message="y"))
    assert isinstance(await held, Refused)


async def test_a_server_that_fails_in_vain_is_not_waited_for(bench: Bench) -> None:
    bench.statuses.put(server())
    held = bench.hold()
    await bench.settle()
    bench.statuses.put(server(state=FAILING, reason="BadModel", message="0 of 1 engines answer: no such tensor"))
    verdict = await held
    assert isinstance(verdict, Refused)
    assert "no such tensor" in verdict.message


async def test_a_server_that_is_removed_while_requests_wait_is_unknown(bench: Bench) -> None:
    bench.statuses.put(server())
    held = bench.hold()
    await bench.settle()
    bench.statuses.put(server(state=STOPPING, reason="Stopping"))
    assert await held == UnknownTarget()
    again = bench.hold()
    bench.statuses.remove(server())
    assert await again == UnknownTarget()


async def test_of_two_servers_with_the_name_one_is_woken_and_either_will_do(bench: Bench) -> None:
    bench.statuses.put(server("a", SLEEPING))
    bench.statuses.put(server("b", SLEEPING))
    held = bench.hold("m:smol")
    await bench.settle()
    assert bench.woken == ["a"]
    bench.statuses.put(server("b", READY, ready=1))
    assert await held == EngineReady()
    assert bench.touched == ["b"]


async def test_a_sleeping_server_is_woken_in_place_of_a_failing_one(bench: Bench) -> None:
    bench.statuses.put(server("a", FAILING, reason="BadModel"))
    bench.statuses.put(server("b", SLEEPING))
    held = bench.hold("m:smol")
    await bench.settle()
    assert bench.woken == ["b"]
    held.cancel()


async def test_a_client_that_leaves_is_released_and_the_others_go_on() -> None:
    bench = Bench()
    bench.statuses.put(server(state=SLEEPING))
    first, second = bench.hold(), bench.hold()
    await asyncio.sleep(0)
    first.cancel()
    await bench.settle()
    assert first.cancelled()
    assert bench.holder.held == 1
    bench.statuses.put(server(state=READY, ready=1))
    assert await second == EngineReady()


async def test_more_than_may_be_held_are_turned_away() -> None:
    bench = Bench(max_held=2)
    bench.statuses.put(server())
    held = [bench.hold() for _ in range(2)]
    await bench.settle()
    assert await bench.holder.hold("s:a") == TooManyHeld()
    held[0].cancel()
    await bench.settle()
    third = bench.hold()
    await bench.settle()
    assert not third.done()
    for task in (held[1], third):
        task.cancel()


class Broken:
    """A wake that fails a given number of times. The test ends the pauses between the attempts."""

    def __init__(self, bench: Bench, failures: int) -> None:
        self.tries = 0
        self.pauses: list[float] = []
        self.go_on = asyncio.Event()
        self._failures = failures
        self._bench = bench
        demand = Demand()
        self.wakes = WakeTasks(self._wake, demand, self._sleep)
        self.holder = RequestHolder(bench.statuses, demand, self.wakes, bench.touched.append, lambda: bench.now)

    async def _wake(self, server_uuid: str) -> None:
        self.tries += 1
        if self.tries <= self._failures:
            raise OSError("the database is away")
        self._bench.statuses.put(server(state=STARTING))

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.go_on.wait()
        self.go_on.clear()


async def test_a_wake_that_fails_is_tried_again_while_a_request_waits(bench: Bench) -> None:
    broken = Broken(bench, failures=3)
    bench.statuses.put(server(state=SLEEPING))
    held = [asyncio.create_task(broken.holder.hold("s:a")) for _ in range(2)]
    for tries in range(1, 4):
        await bench.settle()
        assert broken.tries == tries
        broken.go_on.set()
    await bench.settle()
    assert broken.tries == 4
    assert broken.pauses == sorted(set(broken.pauses)), "each pause is longer than the one before"
    bench.statuses.put(server(state=READY, ready=1))
    assert await asyncio.gather(*held) == [EngineReady()] * 2


async def test_the_refusal_after_wakes_that_failed_names_the_cause(bench: Bench) -> None:
    broken = Broken(bench, failures=99)
    bench.statuses.put(server(state=SLEEPING, reason="Asleep", message="asleep"))
    held = asyncio.create_task(broken.holder.hold("s:a"))
    await bench.settle()
    bench.now = 60.0
    bench.statuses.put(server(state=SLEEPING, reason="Asleep", message="asleep still"))
    verdict = await held
    assert isinstance(verdict, Refused)
    assert "the database is away" in verdict.message
    await broken.wakes.close()


async def test_a_failing_wake_is_given_up_once_no_request_waits(bench: Bench) -> None:
    broken = Broken(bench, failures=99)
    bench.statuses.put(server(state=SLEEPING))
    held = asyncio.create_task(broken.holder.hold("s:a"))
    await bench.settle()
    held.cancel()
    await bench.settle()
    broken.go_on.set()
    await bench.settle()
    assert broken.tries == 1
    again = asyncio.create_task(broken.holder.hold("s:a"))
    await bench.settle()
    assert broken.tries == 2
    again.cancel()
    await broken.wakes.close()


async def test_a_request_waits_for_no_wake_that_hangs_once_an_engine_is_there(bench: Bench) -> None:
    async def hangs(server_uuid: str) -> None:
        await asyncio.Event().wait()

    demand = Demand()
    wakes = WakeTasks(hangs, demand)
    holder = RequestHolder(bench.statuses, demand, wakes, bench.touched.append, lambda: bench.now)
    bench.statuses.put(server(state=SLEEPING))
    held = asyncio.create_task(holder.hold("s:a"))
    await bench.settle()
    bench.statuses.put(server(state=READY, ready=1))
    assert await held == EngineReady()
    await wakes.close()


async def test_a_failing_server_is_waited_for_while_its_next_start_is_due_in_time(bench: Bench) -> None:
    bench.statuses.put(server(state=FAILING, reason="EngineKilled", message="0 of 1 engines answer: killed"))
    starting = bench.hold()
    await bench.settle()
    assert not starting.done(), "no time of a next start: an engine is being started now"
    bench.statuses.put(server(state=FAILING, reason="EngineKilled", message="killed", next_start=59))
    await bench.settle()
    assert not starting.done()
    bench.statuses.put(server(state=FAILING, reason="EngineKilled", message="killed again", next_start=61))
    verdict = await starting
    assert isinstance(verdict, Refused)
    assert "killed again. The next try is in 61 s" in verdict.message
    assert verdict.retry_after == 61


async def test_a_failing_server_that_comes_back_answers_its_held_requests(bench: Bench) -> None:
    bench.statuses.put(server(state=FAILING, reason="EngineKilled", next_start=2))
    held = [bench.hold() for _ in range(5)]
    await bench.settle()
    bench.statuses.put(server(state=DEGRADED, ready=1))
    assert await asyncio.gather(*held) == [EngineReady()] * 5


@pytest.mark.parametrize("reason", sorted(PERMANENT_FAILURES))
async def test_a_server_whose_next_start_must_fail_too_is_refused_at_once(bench: Bench, reason: str) -> None:
    bench.statuses.put(
        server(state=FAILING, reason=reason, message="0 of 1 engines answer: no such tensor", next_start=1)
    )
    verdict = await bench.hold()
    assert isinstance(verdict, Refused)
    assert "no such tensor" in verdict.message


async def test_demand_names_a_server_as_long_as_a_request_waits_for_it(bench: Bench) -> None:
    demand, holder = bench.demand, bench.holder
    bench.statuses.put(server(state=STARTING))
    first, second = (asyncio.create_task(holder.hold(cluster)) for cluster in ("s:a", "m:smol"))
    await bench.settle()
    assert demand.waits_for("a")
    first.cancel()
    await bench.settle()
    assert demand.waits_for("a")
    second.cancel()
    await bench.settle()
    assert not demand.waits_for("a")


async def test_a_request_whose_budget_is_spent_already_is_told_that_no_engine_was_ready_in_time(bench: Bench) -> None:
    bench.statuses.put(server(budget=60))
    verdict = await asyncio.wait_for(bench.holder.hold("s:a", waited=70), 5)
    assert isinstance(verdict, Refused)
    assert verdict.message.startswith("No engine was ready in time")
    assert verdict.retry_after == 1


async def test_a_sleeping_server_is_woken_if_another_of_the_name_waits_for_memory(bench: Bench) -> None:
    bench.statuses.put(server("a", STARTING, reason="WaitsForMemory"))
    bench.statuses.put(server("b", SLEEPING))
    held = bench.hold("m:smol")
    await bench.settle()
    assert bench.woken == ["b"]
    held.cancel()
