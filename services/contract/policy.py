"""Whether a server may be: the limits in force and the memory there is, against what is wanted. Pure: plain values in, refusals out.

Invariant: every refusal states its numbers and what would be allowed instead, for people and, in `metadata`, for programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llamesh.kit.errors import Reason, name_of, spec_of
from services.contract.fit import MemoryEstimate

CONTEXT_STEP = 256
"""Contexts that are proposed are multiples of this many tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """MAX_REPLICAS and ALLOWED_NAMESPACES."""

    max_replicas: int
    allowed_namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that speaks against a request; the fields are those of the contract's message."""

    reason: str
    message: str
    remedy: str
    metadata: dict[str, str] = field(default_factory=dict)


def limit_refusals(limits: Limits, replicas: int, namespace: str) -> list[Refusal]:
    """What the limits say against so many replicas in this namespace."""
    found = []
    if replicas > limits.max_replicas:
        found.append(
            _refusal(
                Reason.ERROR_REASON_TOO_MANY_REPLICAS,
                f"{replicas} replicas are more than MAX_REPLICAS, which is {limits.max_replicas}",
                {"replicas": str(replicas), "maxReplicas": str(limits.max_replicas)},
            )
        )
    if namespace not in limits.allowed_namespaces:
        allowed = ",".join(limits.allowed_namespaces)
        found.append(
            _refusal(
                Reason.ERROR_REASON_NAMESPACE_NOT_ALLOWED,
                f"the namespace {namespace!r} is not one of ALLOWED_NAMESPACES, which are {allowed}",
                {"namespace": namespace, "allowed": allowed},
            )
        )
    return found


def memory_refusals(
    estimate: Callable[[int], MemoryEstimate], context: int, least_context: int, free_bytes: Sequence[int]
) -> list[Refusal]:
    """What the memory says: `free_bytes` of each machine, against engines that must each find room on one of them.

    `estimate` gives the memory for a context in tokens, more for a longer one; `least_context` is the shortest that can be
    proposed instead.
    """
    wanted = estimate(context)
    if fits(wanted, free_bytes):
        return []
    metadata = {"neededBytes": str(wanted.total_bytes), "freeBytes": str(max(free_bytes, default=0))}
    message = (
        f"{wanted.replicas} x {size(wanted.engine_bytes)} are needed (weights {size(wanted.weights_bytes)}, "
        f"KV cache of {context} tokens {size(wanted.kv_cache_bytes)}, buffers {size(wanted.overhead_bytes)}), "
        f"and {_free(free_bytes)}"
    )
    fitting = largest_fitting_context(estimate, least_context, context, free_bytes)
    places = _places(wanted, free_bytes)
    if fitting:
        metadata["fittingCtxSize"] = str(fitting)
        message += f"; --ctx-size {fitting} would fit"
    elif places:
        metadata["fittingReplicas"] = str(places)
        message += f"; {places} of these engines would fit"
    return [_refusal(Reason.ERROR_REASON_DOES_NOT_FIT, message, metadata)]


def fits(wanted: MemoryEstimate, free_bytes: Sequence[int]) -> bool:
    """Whether every engine finds room on some machine."""
    return _places(wanted, free_bytes) >= wanted.replicas


def largest_fitting_context(
    estimate: Callable[[int], MemoryEstimate], least: int, most: int, free_bytes: Sequence[int]
) -> int:
    """The longest context, a multiple of CONTEXT_STEP from `least` to `most` tokens, that fits; 0 where none does."""
    low, high = -(-least // CONTEXT_STEP), most // CONTEXT_STEP
    if low > high or not fits(estimate(low * CONTEXT_STEP), free_bytes):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(estimate(middle * CONTEXT_STEP), free_bytes):
            low = middle
        else:
            high = middle - 1
    return low * CONTEXT_STEP


def size(amount: int) -> str:
    """Bytes for people: "512 MiB", "21.4 GiB"."""
    gibibytes = amount / (1 << 30)
    return f"{gibibytes:.1f} GiB" if gibibytes >= 1 else f"{amount / (1 << 20):.0f} MiB"


def _places(wanted: MemoryEstimate, free_bytes: Sequence[int]) -> int:
    """How many such engines find room: none is spread over machines."""
    return sum(max(free, 0) // wanted.engine_bytes for free in free_bytes)


def _free(free_bytes: Sequence[int]) -> str:
    if len(free_bytes) == 1:
        return f"{size(free_bytes[0])} are free"
    return f"{len(free_bytes)} machines have {', '.join(size(free) for free in free_bytes[:8])} free"


def _refusal(reason: Reason.ValueType, message: str, metadata: dict[str, str]) -> Refusal:
    return Refusal(name_of(reason), message, spec_of(reason).remedy, metadata)
