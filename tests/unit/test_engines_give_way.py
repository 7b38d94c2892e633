"""An engine's threads are packed while others need the cores, and spread again when they do not."""

from __future__ import annotations

import ctypes
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from engine import thread_placement, thread_yielding
from engine.thread_placement import CoreUsage, ThreadPlacement
from engine.thread_yielding import KernelCounters, loaded_libgomp
from llamesh.cores import Cores

TWO = Cores(((0,), (1,)))


def placement(cores: Cores = TWO, threads: int = 2, seed: int = 1) -> ThreadPlacement:
    return ThreadPlacement(cores, threads, random.Random(seed))


def spread(lost: float, seconds: float = 0.05, busy: Mapping[int, float] | None = None) -> CoreUsage:
    """Two threads on two cores that wait this share of the time."""
    return CoreUsage(seconds, (2 - lost) * seconds, lost * seconds, busy or {0: seconds, 1: seconds})


def packed(where: ThreadPlacement, others: Mapping[int, float], seconds: float = 0.25, own: float = 1.0) -> CoreUsage:
    """Our threads fill their cores but for what others (a share of each core) take there."""
    assert where.packed is not None
    ran = {each: max(0.0, own - others.get(each, 0)) * seconds if each in where.packed else 0.0 for each in others}
    return CoreUsage(
        seconds, sum(ran.values()), 0.0, {each: share * seconds + ran[each] for each, share in others.items()}
    )


@pytest.mark.parametrize(("lost", "gives_way"), [(0.0, False), (0.3, False), (0.67, True), (1.0, True)])
def test_threads_are_packed_once_they_wait_for_a_core(lost: float, gives_way: bool) -> None:
    where = placement()
    where.update(spread(lost))
    assert (where.packed is not None) is gives_way
    if where.packed is not None:
        assert len(where.packed) == 1


def test_half_of_the_threads_cores_are_kept_with_all_their_processors() -> None:
    where = placement(Cores(tuple((each, each + 8) for each in range(8))), threads=8)
    where.update(CoreUsage(0.05, 0.3, 0.1, dict.fromkeys(range(16), 0.05)))
    assert where.packed is not None
    assert len(where.packed) == 8
    assert {each % 8 for each in where.packed} == {each for each in where.packed if each < 8}


def test_the_cores_that_others_use_least_are_taken() -> None:
    for seed in range(20):
        where = placement(Cores(tuple((each,) for each in range(4))), threads=2, seed=seed)
        where.update(CoreUsage(0.05, 0.05, 0.05, {0: 0.05, 1: 0.05, 2: 0.0, 3: 0.05}))
        assert where.packed == frozenset({2})


def test_threads_stay_packed_while_others_compute_and_are_spread_afterwards() -> None:
    where = placement()
    where.update(spread(0.67))
    assert where.packed is not None
    (own,) = where.packed
    for _ in range(10):
        where.update(packed(where, {own: 0.0, 1 - own: 1.0}))
        assert where.packed == frozenset({own})
    where.update(packed(where, {own: 0.0, 1 - own: 0.1}))
    assert where.packed is None


def test_an_engine_at_rest_leaves_its_place_when_others_do() -> None:
    where = placement()
    where.update(spread(0.67))
    where.update(packed(where, {0: 0.0, 1: 0.0}, own=0.0))
    assert where.packed is None


def test_an_intermittent_load_is_given_way_longer_each_time() -> None:
    where = placement()
    calm = []
    for _ in range(8):
        where.update(spread(1.0))
        looks = 0
        while where.packed is not None:
            where.update(packed(where, {0: 0.0, 1: 0.0}))
            looks += 1
        calm.append(looks * thread_placement.PACKED_SECONDS)
    assert calm == [0.25, 0.5, 1, 2, 2, 2, 2, 2]
    where.update(spread(0.0, seconds=3))
    where.update(spread(1.0))
    where.update(packed(where, {0: 0.0, 1: 0.0}))
    assert where.packed is None


def test_two_engines_on_one_core_part() -> None:
    for seed in range(20):
        first, second = placement(seed=seed), placement(seed=seed + 100)
        first.packed = second.packed = frozenset({0})
        looks = 0
        while first.packed == second.packed:
            looks += 1
            assert looks < 30
            both = [0.0, 0.0]
            for each in (first, second):
                assert each.packed is not None
                both[min(each.packed)] += 1
            share = {0: 1 / max(1, both[0]), 1: 1 / max(1, both[1])}
            busy = {core: min(1.0, both[core]) * 0.25 for core in (0, 1)}
            for each in (first, second):
                assert each.packed is not None
                each.update(CoreUsage(0.25, share[min(each.packed)] * 0.25, 0.25, busy))
        apart = first.packed, second.packed
        for each in (first, second):
            each.update(CoreUsage(0.25, 0.25, 0.0, {0: 0.25, 1: 0.25}))
        assert (first.packed, second.packed) == apart


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counters are Linux's")
def test_a_thread_that_computes_is_seen() -> None:
    own = os.sched_getaffinity(0)
    machine = KernelCounters(Cores(tuple((each,) for each in sorted(own))))
    assert machine.readable()
    machine.computes()
    assert machine.usage() is None
    until = os.times().user + 0.1
    while os.times().user < until:
        pass
    usage = machine.usage()
    assert usage is not None
    assert usage.ran > 0.08
    assert usage.busy.keys() >= own
    assert machine.computes()


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ("7f-80 r-xp 0 08:01 12   /usr/lib/libgomp.so.1.0.0\n7f-80 r-xp 0 0 0 [heap]\n", "/usr/lib/libgomp.so.1.0.0"),
        ("7f-80 r 0 08:01 12 /x/a.libs/libgomp-a34b3233.so.1.0.0\n", "/x/a.libs/libgomp-a34b3233.so.1.0.0"),
        ("7f-80 r-xp 0 0 0 [heap]\n", None),
    ],
)  # fmt: skip
def test_the_libgomp_that_is_loaded_is_found(maps: str, expected: str | None) -> None:
    assert loaded_libgomp(maps) == (Path(expected) if expected else None)


CROWD = """
import ctypes, os, time, threading
from pathlib import Path
from engine.thread_yielding import IdleTeam, loaded_libgomp
library = ctypes.CDLL("libgomp.so.1")
crowd = IdleTeam(loaded_libgomp(Path("/proc/self/maps").read_text()), os.cpu_count())
def tasks(): return len(os.listdir("/proc/self/task"))
before = tasks()
for _ in range(3):
    assert crowd.gather() and crowd.gather()
    while tasks() != before + os.cpu_count() + 1: time.sleep(0.01)
    crowd.disperse(); crowd.disperse()
    while tasks() > before: time.sleep(0.01)
import resource, pwd
if os.getuid() == 0:
    # Root has no limit of threads: become nobody, of whom there are a few.
    os.setuid(pwd.getpwnam("nobody").pw_uid)
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
assert not crowd.gather()
# llama.cpp may take the last thread after the look: it starts one for each connection.
crowd._has_room = lambda: True
assert not crowd.gather()
crowd.disperse()
"""


def test_an_idle_team_comes_and_goes() -> None:
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        pytest.skip("no libgomp on this machine")
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", CROWD], cwd=root, check=True, timeout=30)


class _Counted(KernelCounters):
    """The kernel's counters of an engine that always waits for a core, and a note of where its threads were placed."""

    def __init__(self) -> None:
        super().__init__(TWO)
        self.placed: list[frozenset[int] | None] = []
        self.problem: OSError | None = None

    def computes(self) -> bool:
        return True

    def usage(self) -> CoreUsage | None:
        if self.problem:
            raise self.problem
        return spread(1.0)

    def place(self, processors: frozenset[int] | None) -> None:
        self.placed.append(processors)


class _Team(thread_yielding.IdleTeam):
    """A team that can or cannot be started."""

    def __init__(self, room: bool) -> None:
        self.room = room

    def gather(self) -> bool:
        return self.room


def test_threads_stay_as_they_are_if_a_limit_of_threads_stands_in_the_way() -> None:
    machine, where = _Counted(), placement()
    assert thread_yielding.ThreadYielder(where, machine, _Team(room=False)).adjust() == thread_yielding.RETRY_SECONDS
    assert where.packed is None
    assert machine.placed == []
    assert thread_yielding.ThreadYielder(where, machine, _Team(room=True)).adjust() == thread_placement.PACKED_SECONDS
    assert machine.placed == [where.packed]


def test_a_failure_to_count_threads_ends_no_engine() -> None:
    machine = _Counted()
    machine.problem = OSError("too many open files")
    assert (
        thread_yielding.ThreadYielder(placement(), machine, _Team(room=True)).adjust() == thread_yielding.RETRY_SECONDS
    )
