"""Concurrent requests of a contract: never more than its limit, given back at the end, never lost for ever."""

from __future__ import annotations

import random

from services.contract.concurrency import ConcurrencyLimiter
from services.contract.envoy_request import envoy_of


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def acquire(limiter: ConcurrencyLimiter, contract_id: str, request_id: str, limit: int) -> bool:
    return limiter.acquire({contract_id: limit}, request_id) is None


def test_a_contract_gets_its_limit_and_a_request_that_ends_makes_room() -> None:
    limiter = ConcurrencyLimiter(Clock())
    assert [acquire(limiter, "a", f"r{n}", 2) for n in range(3)] == [True, True, False]
    assert acquire(limiter, "b", "other", 1)
    limiter.release("r0")
    assert limiter.in_flight("a") == 1
    assert acquire(limiter, "a", "r3", 2)


def test_a_request_under_two_contracts_counts_against_both_or_none() -> None:
    limiter = ConcurrencyLimiter(Clock())
    assert limiter.acquire({"a": 2, "b": 1}, "r0") is None
    assert limiter.acquire({"a": 2, "b": 1}, "r1") == "b"
    assert (limiter.in_flight("a"), limiter.in_flight("b")) == (1, 1)
    limiter.release("r0")
    assert (limiter.in_flight("a"), limiter.in_flight("b")) == (0, 0)


def test_an_end_that_was_never_begun_changes_nothing() -> None:
    limiter = ConcurrencyLimiter(Clock())
    acquire(limiter, "a", "r1", 1)
    limiter.release("unknown")
    limiter.release("")
    assert limiter.in_flight("a") == 1


def test_a_request_id_used_twice_counts_twice() -> None:
    limiter = ConcurrencyLimiter(Clock())
    assert [acquire(limiter, "a", "same", 2) for _ in range(3)] == [True, True, False]
    limiter.release("same")
    assert limiter.in_flight("a") == 1
    limiter.release("same")
    limiter.release("same")
    assert limiter.in_flight("a") == 0


def test_a_lease_whose_end_is_never_reported_ends_by_itself() -> None:
    clock = Clock()
    limiter = ConcurrencyLimiter(clock, seconds=60)
    acquire(limiter, "a", "lost", 1)
    clock.seconds = 59.9
    assert not acquire(limiter, "a", "next", 1)
    clock.seconds = 60
    assert acquire(limiter, "a", "next", 1)
    limiter.release("lost")  # the line comes late
    assert limiter.in_flight("a") == 1


def test_a_lowered_limit_holds_for_the_next_request() -> None:
    limiter = ConcurrencyLimiter(Clock())
    for number in range(3):
        acquire(limiter, "a", str(number), 3)
    limiter.release("0")
    assert not acquire(limiter, "a", "next", 2)


def test_random_traffic_never_exceeds_the_limit_and_leaves_nothing_behind() -> None:
    rng, clock = random.Random(4), Clock()
    limiter = ConcurrencyLimiter(clock, seconds=50)
    running: dict[str, list[tuple[str, float]]] = {"a": [], "b": []}
    limits = {"a": 3, "b": 7}
    for number in range(5000):
        clock.seconds += rng.random()
        running = {key: [item for item in items if item[1] > clock.seconds] for key, items in running.items()}
        contract = rng.choice("ab")
        if rng.random() < 0.6:
            taken = acquire(limiter, contract, f"r{number}", limits[contract])
            assert taken == (len(running[contract]) < limits[contract])
            if taken:
                running[contract].append((f"r{number}", clock.seconds + 50))
        elif running[contract] and rng.random() < 0.7:
            limiter.release(running[contract].pop(rng.randrange(len(running[contract])))[0])
        assert limiter.in_flight(contract) == len(running[contract])
    clock.seconds += 51
    assert (limiter.in_flight("a"), limiter.in_flight("b")) == (0, 0)
    assert (limiter._by_contract, limiter._by_request) == ({}, {})


def test_an_envoy_that_is_gone_gives_back_its_permits_only() -> None:
    limiter = ConcurrencyLimiter(lambda: 0.0)
    for number, envoy in enumerate(("one", "two", "one")):
        assert limiter.acquire({"a": 3}, f"r{number}", envoy) is None
    limiter.release_all("one")
    assert limiter.in_flight("a") == 1
    limiter.release("r1")
    assert limiter.in_flight("a") == 0


def test_connections_of_one_address_are_one_envoy() -> None:
    assert envoy_of("ipv4:10.1.2.3:40000") == envoy_of("ipv4:10.1.2.3:40001") != envoy_of("ipv4:10.1.2.4:40000")
    assert envoy_of("ipv6:%5Bfd00::1%5D:40000") == envoy_of("ipv6:%5Bfd00::1%5D:40001")
    assert envoy_of("unix:") == envoy_of("unix:/run/contract.sock") == ""
