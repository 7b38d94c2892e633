"""Concurrent requests of a contract: never more than its limit, given back at the end, never lost for ever."""

from __future__ import annotations

import random

from services.contract.admission import Leases


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def take(leases: Leases, contract_id: str, request_id: str, limit: int) -> bool:
    return leases.take({contract_id: limit}, request_id) is None


def test_a_contract_gets_its_limit_and_no_more_and_what_ends_makes_room() -> None:
    leases = Leases(Clock())
    assert [take(leases, "a", f"r{n}", 2) for n in range(3)] == [True, True, False]
    assert take(leases, "b", "other", 1)
    leases.give_back("r0")
    assert leases.running("a") == 1
    assert take(leases, "a", "r3", 2)


def test_a_request_under_two_contracts_counts_against_both_or_none() -> None:
    leases = Leases(Clock())
    assert leases.take({"a": 2, "b": 1}, "r0") is None
    assert leases.take({"a": 2, "b": 1}, "r1") == "b"
    assert (leases.running("a"), leases.running("b")) == (1, 1)
    leases.give_back("r0")
    assert (leases.running("a"), leases.running("b")) == (0, 0)


def test_an_end_that_was_never_begun_changes_nothing() -> None:
    leases = Leases(Clock())
    take(leases, "a", "r1", 1)
    leases.give_back("unknown")
    leases.give_back("")
    assert leases.running("a") == 1


def test_a_request_id_used_twice_counts_twice() -> None:
    leases = Leases(Clock())
    assert [take(leases, "a", "same", 2) for _ in range(3)] == [True, True, False]
    leases.give_back("same")
    assert leases.running("a") == 1
    leases.give_back("same")
    leases.give_back("same")
    assert leases.running("a") == 0


def test_a_lease_whose_end_is_never_reported_ends_by_itself() -> None:
    clock = Clock()
    leases = Leases(clock, seconds=60)
    take(leases, "a", "lost", 1)
    clock.seconds = 59.9
    assert not take(leases, "a", "next", 1)
    clock.seconds = 60
    assert take(leases, "a", "next", 1)
    leases.give_back("lost")  # the line comes late
    assert leases.running("a") == 1


def test_a_lowered_limit_holds_for_the_next_request() -> None:
    leases = Leases(Clock())
    for number in range(3):
        take(leases, "a", str(number), 3)
    leases.give_back("0")
    assert not take(leases, "a", "next", 2)


def test_random_traffic_never_exceeds_the_limit_and_leaves_nothing_behind() -> None:
    rng, clock = random.Random(4), Clock()
    leases = Leases(clock, seconds=50)
    running: dict[str, list[tuple[str, float]]] = {"a": [], "b": []}
    limits = {"a": 3, "b": 7}
    for number in range(5000):
        clock.seconds += rng.random()
        running = {key: [item for item in items if item[1] > clock.seconds] for key, items in running.items()}
        contract = rng.choice("ab")
        if rng.random() < 0.6:
            taken = take(leases, contract, f"r{number}", limits[contract])
            assert taken == (len(running[contract]) < limits[contract])
            if taken:
                running[contract].append((f"r{number}", clock.seconds + 50))
        elif running[contract] and rng.random() < 0.7:
            leases.give_back(running[contract].pop(rng.randrange(len(running[contract])))[0])
        assert leases.running(contract) == len(running[contract])
    clock.seconds += 51
    assert (leases.running("a"), leases.running("b")) == (0, 0)
    assert (leases._by_contract, leases._by_request) == ({}, {})
