"""Starts respect the limit, the memory and a fair order. Clock, memory and engines are fakes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from controller.footprint import Claim, Footprint
from controller.runtimes import Engine, EnginePhase
from controller.runtimes.start_limit import MAX_STARTS, default_limit
from controller.starts import (
    SLOW_START_SECONDS,
    NotEnoughMemory,
    PendingStart,
    Queued,
    StartDecision,
    StartNow,
    StartScheduler,
    decide,
)
from llamesh.kit.machine_memory import MachineMemory

GIB = 1 << 30
SMALL, LARGE = Footprint("small", GIB), Footprint("large", 20 * GIB)
MACHINE = MachineMemory(64 * GIB, 64 * GIB)


def waiting(name: str, since: float = 0.0, footprint: Footprint = SMALL, *, urgent: bool = False) -> PendingStart:
    return PendingStart(name, 0, footprint, since, urgent)


def verdicts(
    *wanted: PendingStart,
    starting: int = 0,
    limit: int = 1,
    memory: MachineMemory = MACHINE,
    claims: Sequence[Claim] = (),
) -> dict[str, StartDecision]:
    decided = decide(wanted, starting, limit, memory, 0, claims)
    return {name: verdict for (name, _), verdict in decided.items()}


def test_the_limit_counts_those_that_start_already() -> None:
    wanted = [waiting(name, since) for since, name in enumerate("abcd")]
    assert verdicts(*wanted, starting=1, limit=3) == {
        "a": StartNow(),
        "b": StartNow(),
        "c": Queued(3),
        "d": Queued(4),
    }
    assert set(verdicts(*wanted, starting=5, limit=3).values()) == {Queued(number) for number in (5, 6, 7, 8)}


def test_an_urgent_server_starts_before_servers_that_have_waited_longer() -> None:
    found = verdicts(waiting("first", 0), waiting("wanted", 9, urgent=True), waiting("second", 1))
    assert found == {"wanted": StartNow(), "first": Queued(1), "second": Queued(2)}


def test_a_start_without_room_is_passed_over_with_its_numbers() -> None:
    memory = MachineMemory(64 * GIB, 4 * GIB)
    found = verdicts(waiting("large", 0, LARGE), waiting("small", 1), memory=memory)
    assert found == {"large": NotEnoughMemory(20 * GIB, 4 * GIB), "small": StartNow()}
    assert str(found["large"]) == "waits for memory: needs 20.0 GiB, 4.0 GiB are free"


def test_starts_granted_together_fit_into_memory_together() -> None:
    wanted = [waiting(str(index), index, LARGE) for index in range(5)]
    found = verdicts(*wanted, limit=5)
    assert [found[str(index)] for index in range(5)] == [
        StartNow(),
        StartNow(),
        StartNow(),
        NotEnoughMemory(20 * GIB, 4 * GIB),
        NotEnoughMemory(20 * GIB, 4 * GIB),
    ]


def test_replicas_of_one_file_need_its_weights_once() -> None:
    mapped = Footprint("m", GIB, 40 * GIB)
    wanted = [waiting(str(index), index, mapped) for index in range(4)]
    assert set(verdicts(*wanted, limit=9).values()) == {StartNow()}
    running = [Claim(Footprint("other", GIB, 40 * GIB), 1, 1)]
    assert set(verdicts(*wanted, limit=9, claims=running).values()) == {NotEnoughMemory(41 * GIB, 23 * GIB)}


def test_the_words_for_people() -> None:
    assert str(Queued(1)) == "waits for 1 other start"
    assert str(Queued(3)) == "waits for 3 other starts"


@pytest.mark.parametrize(("cores", "limit"), [(0, 1), (1, 1), (2, 2), (16, 16), (128, MAX_STARTS)])
def test_the_default_limit_follows_the_cores(cores: int, limit: int) -> None:
    assert default_limit(cores) == limit


class Machine:
    """The scheduler and the engines that it lets start."""

    def __init__(self, limit: int) -> None:
        self.now = 0.0
        self.memory = MACHINE
        self.wanted_by_requests: set[str] = set()
        self.engines: dict[str, list[Engine]] = {}
        self.starts = StartScheduler(
            limit, 0, lambda: self.memory, self.wanted_by_requests.__contains__, lambda: self.now, lambda: self.now
        )

    def look(self, name: str, footprint: Footprint = SMALL, replicas: Sequence[int] = (0,)) -> dict[int, StartDecision]:
        """Observe, request, start and observe again, as the reconciler does."""
        self.starts.observe(name, footprint, self.engines.get(name, ()))
        have = {engine.replica for engine in self.engines.get(name, ())}
        found = dict(self.starts.request(name, [index for index in replicas if index not in have], footprint))
        for replica, verdict in found.items():
            if isinstance(verdict, StartNow):
                self.engines.setdefault(name, []).append(self.engine(name, replica, EnginePhase.STARTING))
        self.starts.observe(name, footprint, self.engines.get(name, ()))
        return found

    def engine(self, name: str, replica: int, phase: EnginePhase) -> Engine:
        return Engine(f"{name}-{replica}", name, replica, "h", phase, "", "", datetime.fromtimestamp(self.now, UTC))

    def become(self, name: str, phase: EnginePhase) -> None:
        self.engines[name] = [self.engine(name, engine.replica, phase) for engine in self.engines[name]]
        self.look(name)

    @property
    def starting(self) -> list[str]:
        return sorted(
            name for name, engines in self.engines.items() for engine in engines if engine.phase is EnginePhase.STARTING
        )


def test_whoever_waits_is_due_when_a_start_is_over() -> None:
    machine = Machine(limit=2)
    for name in "abcd":
        machine.now += 1
        machine.look(name)
    assert machine.starting == ["a", "b"]
    assert machine.starts.startable() == set()
    machine.become("a", EnginePhase.READY)
    assert machine.starts.startable() == {"c"}
    machine.wanted_by_requests.add("d")
    assert machine.starts.startable() == {"d"}
    assert machine.look("d") == {0: StartNow()}
    assert machine.starts.startable() == set()
    machine.become("b", EnginePhase.ENDED)
    assert machine.starts.startable() == {"c"}


def test_a_server_that_has_an_engine_is_not_urgent_for_the_next() -> None:
    machine = Machine(limit=1)
    machine.wanted_by_requests.update("ab")
    machine.look("a", replicas=(0, 1))
    machine.now += 1
    machine.look("b")
    machine.become("a", EnginePhase.READY)
    machine.look("a", replicas=(0, 1))
    assert machine.starts.startable() == {"b"}


def test_a_server_that_needs_no_start_any_more_gives_up_its_turn() -> None:
    machine = Machine(limit=1)
    for name in "abc":
        machine.now += 1
        machine.look(name)
    machine.look("b", replicas=())
    machine.become("a", EnginePhase.READY)
    assert machine.starts.startable() == {"c"}
    machine.starts.forget("c")
    assert machine.starts.startable() == set()


def test_a_start_that_takes_very_long_does_not_hold_up_the_others() -> None:
    machine = Machine(limit=1)
    machine.look("a")
    machine.look("b")
    machine.now += SLOW_START_SECONDS - 1
    assert machine.starts.startable() == set()
    machine.now += 2
    assert machine.starts.startable() == {"b"}


def test_memory_that_becomes_free_lets_a_start_go() -> None:
    machine = Machine(limit=4)
    machine.memory = MachineMemory(64 * GIB, 10 * GIB)
    assert machine.look("a", LARGE) == {0: NotEnoughMemory(20 * GIB, 10 * GIB)}
    machine.memory = MachineMemory(64 * GIB, 30 * GIB)
    assert machine.starts.startable() == {"a"}


def test_a_server_that_waits_for_memory_is_told_which_servers_hold_it() -> None:
    machine = Machine(limit=4)
    for name, footprint in (("small", SMALL), ("large", LARGE), ("mine", SMALL)):
        machine.look(name, footprint)
    machine.memory = MachineMemory(64 * GIB, 5 * GIB)
    verdict = machine.look("mine", Footprint("mine", 30 * GIB), replicas=(0, 1))[1]
    assert isinstance(verdict, NotEnoughMemory)
    assert verdict.explained == (
        "waits for memory: needs 30.0 GiB, 0 MiB are free; the largest holders are large (large) 20.0 GiB, small (small) 1.0 GiB:"
        " let one sleep (`llamesh sleep`), or stop it"
    )
    # Clients see this text, so it names no other server.
    assert str(verdict) == "waits for memory: needs 30.0 GiB, 0 MiB are free"


def test_room_without_a_servers_own_engines_is_known() -> None:
    machine = Machine(limit=4)
    machine.look("a", LARGE)
    machine.become("a", EnginePhase.READY)
    machine.memory = MachineMemory(64 * GIB, 10 * GIB)
    assert machine.starts.shortage_without("b", LARGE) == NotEnoughMemory(20 * GIB, 10 * GIB)


@pytest.mark.parametrize("seed", range(30))
def test_a_hundred_that_wake_at_once_all_start_and_never_too_many_at_a_time(seed: int) -> None:
    rng = random.Random(seed)
    limit = rng.randint(1, 8)
    machine = Machine(limit)
    names = [f"s{index}" for index in range(100)]
    machine.wanted_by_requests.update(rng.sample(names, 50))
    machine.memory = MachineMemory(200 * GIB, 200 * GIB)
    ready: set[str] = set()
    for name in names:
        machine.look(name)
        assert len(machine.starting) <= limit
    while len(ready) < len(names):
        name = rng.choice(machine.starting)
        machine.become(name, EnginePhase.READY)
        ready.add(name)
        for due in sorted(machine.starts.startable()):
            machine.look(due)
        assert len(machine.starting) <= limit
        assert machine.starting or len(ready) == len(names), "somebody always starts"
