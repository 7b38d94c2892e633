"""Refusals of policy say what is wanted, what there is and what would be allowed, for people and for programs."""

from __future__ import annotations

import random

import pytest

from llamesh.kit.holders import Holder, in_words, largest
from llamesh.sizes import size
from services.contract.memory_estimate import MemoryEstimate
from services.contract.policy import (
    Machine,
    Policy,
    fits,
    largest_fitting_context,
    limit_refusals,
    memory_refusals,
)

GIB = 1 << 30
LIMITS = Policy(5, ("default", "inference"))


def estimate(context: int, replicas: int = 1) -> MemoryEstimate:
    return MemoryEstimate(4 * GIB, context * (1 << 17), GIB, replicas)


def test_a_request_within_all_limits_is_not_refused() -> None:
    assert limit_refusals(LIMITS, 5, "inference") == []
    assert memory_refusals(estimate, 4096, 256, [Machine(6 * GIB)]) == []


def test_each_limit_that_is_broken_is_named_with_its_value() -> None:
    replicas, namespace = limit_refusals(LIMITS, 9, "kube-system")
    assert (replicas.reason, replicas.metadata) == ("TOO_MANY_REPLICAS", {"replicas": "9", "maxReplicas": "5"})
    assert "9 replicas are more than MAX_REPLICAS, which is 5" in replicas.message
    assert namespace.reason == "NAMESPACE_NOT_ALLOWED"
    assert namespace.metadata == {"namespace": "kube-system", "allowed": "default,inference"}
    assert "administrator" in namespace.remedy


def test_memory_that_is_not_there_is_refused_with_its_parts_and_the_context_that_fits() -> None:
    (refusal,) = memory_refusals(estimate, 131072, 256, [Machine(8 * GIB)])
    assert refusal.reason == "DOES_NOT_FIT"
    assert (
        "1 x 21.0 GiB are needed (weights 4.0 GiB, KV cache of 131072 tokens 16.0 GiB, buffers 1.0 GiB)"
        in refusal.message
    )
    assert "8.0 GiB are free" in refusal.message
    assert refusal.message.endswith("; --ctx-size 24576 would fit")
    assert "choose a smaller quantisation" in refusal.remedy
    assert refusal.metadata == {
        "neededBytes": str(21 * GIB),
        "freeBytes": str(8 * GIB),
        "fittingCtxSize": "24576",
    }
    assert memory_refusals(estimate, 24576, 256, [Machine(8 * GIB)]) == []
    assert memory_refusals(estimate, 24576 + 256, 256, [Machine(8 * GIB)]) != []


def test_a_refusal_names_the_servers_that_hold_the_memory() -> None:
    holders = (Holder("a-uuid", "Qwen", 12 * GIB), Holder("b-uuid", "Phi", 3 * GIB))
    (refusal,) = memory_refusals(estimate, 256, 256, [Machine(2 * GIB, holders=holders), Machine(GIB)])
    assert refusal.message.endswith("; the largest holders are a-uuid (Qwen) 12.0 GiB, b-uuid (Phi) 3.0 GiB")
    assert refusal.metadata["holders"] == f"a-uuid={12 * GIB},b-uuid={3 * GIB}"
    assert ":sleep" in refusal.remedy
    (refusal,) = memory_refusals(estimate, 256, 256, [Machine(2 * GIB, holders=holders[1:])])
    assert refusal.message.endswith("; the largest holder is b-uuid (Phi) 3.0 GiB")


def test_only_the_largest_holders_of_memory_are_named() -> None:
    holders = [Holder(name, "m", held) for name, held in (("a", 1), ("b", 0), ("c", 5), ("d", 5), ("e", 2))]
    assert [each.server_uuid for each in largest(holders)] == ["c", "d", "e"]
    assert in_words(largest(holders[1:2])) == ""


def test_a_refusal_says_how_many_engines_fit_if_no_context_does() -> None:
    (refusal,) = memory_refusals(lambda context: estimate(context, 4), 256, 256, [Machine(12 * GIB)])
    assert refusal.message.endswith("; 2 of these engines would fit")
    (refusal,) = memory_refusals(estimate, 256, 256, [Machine(2 * GIB)])
    assert set(refusal.metadata) == {"neededBytes", "freeBytes"}
    assert "smaller quantisation" in refusal.remedy
    (refusal,) = memory_refusals(estimate, 256, 256, [])
    assert refusal.metadata["freeBytes"] == "0"


def test_an_engine_is_never_spread_over_machines() -> None:
    assert not fits(estimate(256), [Machine(3 * GIB), Machine(3 * GIB)])
    assert fits(estimate(256, 2), [Machine(6 * GIB), Machine(6 * GIB)])
    assert not fits(estimate(256, 3), [Machine(6 * GIB), Machine(6 * GIB)])
    (refusal,) = memory_refusals(lambda context: estimate(context, 3), 256, 256, [Machine(6 * GIB), Machine(6 * GIB)])
    assert "2 machines have 6.0 GiB, 6.0 GiB free" in refusal.message


def shared(context: int, replicas: int = 1) -> MemoryEstimate:
    return MemoryEstimate(4 * GIB, context * (1 << 17), GIB, replicas, shared_weights_bytes=4 * GIB)


# replicas, machines as (free, shared already) in GiB; each engine takes 2 GiB beside 4 GiB of weights: do they fit?
SHARED = [
    (1, [(6, 0)], True),
    (1, [(5, 0)], False),
    (1, [(2, 4)], True),
    (1, [(1, 4)], False),
    (3, [(10, 0)], True),
    (3, [(9, 0)], False),
    (3, [(6, 4)], True),
    (4, [(6, 4)], False),
    (3, [(6, 0), (8, 0)], True),
    (4, [(6, 0), (8, 0)], False),
    (4, [(6, 2), (8, 0)], True),
]


@pytest.mark.parametrize(("replicas", "machines", "expected"), SHARED)
def test_shared_weights_count_once_a_machine(replicas: int, machines: list[tuple[int, int]], expected: bool) -> None:
    there = [Machine(free * GIB, already * GIB) for free, already in machines]
    assert fits(shared(8192, replicas), there) is expected


def test_a_refusal_says_which_weights_are_shared() -> None:
    (refusal,) = memory_refusals(lambda context: shared(context, 3), 8192, 8192, [Machine(9 * GIB)])
    assert (
        "4.0 GiB and 3 x 2.0 GiB are needed (weights 4.0 GiB once, KV cache of 8192 tokens 1.0 GiB" in refusal.message
    )
    assert refusal.metadata["neededBytes"] == str(10 * GIB)
    assert refusal.metadata["fittingReplicas"] == "2"
    (refusal,) = memory_refusals(lambda context: shared(context, 3), 8192, 8192, [Machine(5 * GIB, 4 * GIB)])
    assert "3 x 2.0 GiB are needed" in refusal.message
    assert "the weights 4.0 GiB are in use already" in refusal.message
    assert refusal.metadata["neededBytes"] == str(6 * GIB)


@pytest.mark.parametrize("seed", range(50))
def test_the_proposed_context_is_the_longest_that_fits(seed: int) -> None:
    rng = random.Random(seed)
    free = [Machine(rng.randrange(0, 30 * GIB)) for _ in range(rng.randint(1, 3))]
    least, most = rng.choice([64, 256, 1000]), rng.randrange(64, 200_000)
    replicas = rng.randint(1, 4)
    candidates = [
        context for context in range(256, most + 1, 256) if context >= least and fits(estimate(context, replicas), free)
    ]
    found = largest_fitting_context(lambda context: estimate(context, replicas), least, most, free)
    assert found == max(candidates, default=0)


def test_bytes_are_written_for_people() -> None:
    assert [size(n) for n in (0, 98 << 20, GIB, 21 * GIB + GIB // 2)] == ["0 MiB", "98 MiB", "1.0 GiB", "21.5 GiB"]
