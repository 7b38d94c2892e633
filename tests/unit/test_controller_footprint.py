"""Free memory is bounded by the declared and by the available memory; mapped weights count once per model."""

from __future__ import annotations

import pytest

from controller.footprint import (
    Claim,
    Footprint,
    free,
    freed,
    needed,
    of_one_engine,
    promised,
    released,
    shared_weights,
)
from llamesh.kit.machine_memory import MachineMemory

GIB = 1 << 30
RESERVE = GIB
MAPPED = Footprint("m", 2 * GIB, 18 * GIB)
"""A model of 18 GiB whose engines take 2 GiB each beside it."""
COPIED = Footprint("m", 20 * GIB)
"""The same, if each engine has weights of its own."""
OTHER = Footprint("o", GIB, 4 * GIB)


def machine(available: float, total: float = 64) -> MachineMemory:
    return MachineMemory(int(total * GIB), int(available * GIB))


# what: (memory, claims, free in GiB)
FREE: dict[str, tuple[MachineMemory, list[Claim], float]] = {
    "nothing declared": (machine(60), [], 59),
    "the system has less than is declared": (machine(10), [], 9),
    "nothing is ever below zero": (machine(0.5), [], 0),
    "more declared than there is": (machine(60), [Claim(COPIED, 4)], 0),
    "declared, not running": (machine(60), [Claim(COPIED, 1)], 40 - 1),
    "starting counts as not in memory": (machine(60), [Claim(COPIED, 2, 1)], 64 - 1 - 40),
    # The available bytes lack the private memory but include the mapped weights, which are subtracted.
    "running, weights mapped": (machine(58), [Claim(MAPPED, 1, 1)], 58 - 1 - 18),
    "running, weights its own": (machine(40), [Claim(COPIED, 1, 1)], 40 - 1),
    "two engines of one file": (machine(56), [Claim(MAPPED, 2, 2)], 56 - 1 - 18),
    "one of two engines runs": (machine(58), [Claim(MAPPED, 2, 1)], 58 - 1 - 18 - 2),
    "two servers of one file": (machine(56), [Claim(MAPPED, 1, 1), Claim(MAPPED, 1, 1)], 56 - 1 - 18),
    "two files": (machine(57), [Claim(MAPPED, 1, 1), Claim(OTHER, 1, 1)], 57 - 1 - 18 - 4),
    "a server without engines": (machine(60), [Claim(MAPPED, 0)], 59),
    "not known": (machine(60), [Claim(Footprint("x"), 5)], 59),
}


@pytest.mark.parametrize("case", FREE)
def test_free(case: str) -> None:
    memory, claims, expected = FREE[case]
    assert free(memory, RESERVE, claims) == expected * GIB


def test_a_model_that_runs_is_not_admitted_again_on_a_machine_that_holds_it_once() -> None:
    """Of 24 GiB the system calls 21 available although 18 of them are the mapped weights of an engine that works."""
    claims = [Claim(MAPPED, 1, 1)]
    memory = machine(21, total=24)
    left = free(memory, RESERVE, claims)
    assert left == 2 * GIB
    another = Footprint("another", MAPPED.own_bytes, MAPPED.shared_bytes)
    assert needed(another, shared_weights(claims)) > left
    assert needed(MAPPED, shared_weights(claims)) <= left, "a replica of the same file needs only what is its own"


def test_all_engines_together_never_get_more_than_there_is() -> None:
    memory = machine(60)
    claims: list[Claim] = []
    while needed(COPIED, shared_weights(claims)) <= free(memory, RESERVE, claims):
        claims.append(Claim(COPIED, 1, 1))
        # The worst case: the available bytes never reflect what engines take.
    assert promised(claims) <= memory.total_bytes - RESERVE
    assert len(claims) == 3


def test_a_stopped_server_releases_only_the_memory_of_its_own_engines() -> None:
    running = Claim(MAPPED, 2, 2)
    assert released(machine(40), running) == machine(44)
    assert free(released(machine(40), running), RESERVE, []) == 43 * GIB


def test_of_one_engine_no_more_is_shared_than_it_takes() -> None:
    assert of_one_engine("m", 10, 4) == Footprint("m", 6, 4)
    assert of_one_engine("m", 0, 4) == Footprint("m")
    assert of_one_engine("m", 10, 0).engine_bytes == 10


def test_the_memory_held_by_one_server_excludes_weights_that_others_share() -> None:
    claims = {
        "alone": Claim(Footprint("m", GIB, 4 * GIB), 2),
        "one": Claim(Footprint("shared", GIB, 8 * GIB), 1),
        "other": Claim(Footprint("shared", 2 * GIB, 8 * GIB), 1, 1),
        "asleep": Claim(Footprint("alone-too", GIB, 4 * GIB), 0),
    }
    assert freed(claims) == {"alone": 6 * GIB, "one": GIB, "other": 2 * GIB, "asleep": 0}
    for name, alone in freed(claims).items():
        others = [claim for other, claim in claims.items() if other != name]
        assert promised(claims.values()) - promised(others) == alone
