"""Cores are counted as a container or a processor with two threads a core has them."""

from __future__ import annotations

import math

import pytest

from engine.cores import Threads, threads
from llamesh.cores import Cores, cores, grouped, lowest

EIGHT = tuple((each,) for each in range(8))
SMT = tuple((each, each + 8) for each in range(8))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (["max 100000\n"], math.inf),
        ([""], math.inf),
        (["-1 100000"], math.inf),
        (["nonsense"], math.inf),
        (["200000 100000\n"], 2),
        (["150000 100000"], 1.5),
        (["max 100000", "400000 100000", "50000 100000", ""], 0.5),
    ],
)
def test_the_lowest_limit_of_all_cgroups_holds(limits: list[str], expected: float) -> None:
    assert lowest(limits) == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [(math.inf, 8), (2, 2), (1.5, 2), (0.1, 1), (9, 8)], ids=lambda value: f"{value:g}"
)
def test_a_container_s_limit_counts_as_its_cores(limit: float, expected: int) -> None:
    assert Cores(EIGHT, limit).usable == expected


@pytest.mark.parametrize(
    ("allowed", "siblings", "expected"),
    [
        ({0, 1, 2, 3}, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, ((0, 2), (1, 3))),
        ({0, 1, 2, 3}, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, ((0, 1), (2, 3))),
        ({1, 3}, {1: "0-1", 3: "2-3"}, ((1,), (3,))),
        ({0, 1}, {}, ((0,), (1,))),
        ({0, 1}, {0: "", 1: ""}, ((0,), (1,))),
    ],
)
def test_two_threads_of_a_core_are_one_core(
    allowed: set[int], siblings: dict[int, str], expected: tuple[tuple[int, ...], ...]
) -> None:
    assert grouped(allowed, siblings) == expected


def test_this_machine_has_a_core() -> None:
    assert 1 <= len(cores().groups) <= cores().processors
    assert cores().usable >= 1


@pytest.mark.parametrize(
    ("given", "yields", "expected"),
    [
        (Cores(EIGHT), True, Threads(8, 8)),
        (Cores(EIGHT), False, Threads(4, 8)),
        (Cores(SMT), True, Threads(8, 8)),
        (Cores(EIGHT, 2), True, Threads(2, 2)),
        (Cores(EIGHT, 2.9), True, Threads(2, 2)),
        (Cores(EIGHT, 0.5), True, Threads(1, 1)),
        (Cores(EIGHT[:2]), True, Threads(2, 2)),
        (Cores(EIGHT[:2]), False, Threads(1, 2)),
        (Cores(EIGHT[:1]), False, Threads(1, 1)),
    ],
)
def test_threads_follow_the_physical_cores_and_the_limit(given: Cores, yields: bool, expected: Threads) -> None:
    assert threads(given, yields=yields) == expected
