"""Policy: compares a proposed server with the limits and with the free memory. Pure: plain values in, refusals out.

Invariant: every refusal states its numbers and an allowed alternative: in words, and for programs in `metadata`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llamesh.kit.errors import Reason
from llamesh.kit.holders import Holder, in_words
from llamesh.names import default_namespace
from llamesh.sizes import size
from services.contract.memory_estimate import MemoryEstimate
from services.contract.placement_policy import PlacementPolicy
from services.contract.refusals import PolicyRefusal

CONTEXT_STEP = 256
"""Proposed contexts are multiples of this number of tokens."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The policy in force: MAX_REPLICAS, ALLOWED_NAMESPACES, whether inference needs a token, and where servers may run."""

    max_replicas: int
    allowed_namespaces: tuple[str, ...]
    anonymous_inference: bool = False
    placement: PlacementPolicy | None = None
    """None: nothing places engines, so no server may have a placement."""

    @property
    def default_namespace(self) -> str:
        """The namespace of a server for which none is given."""
        return default_namespace(self.allowed_namespaces)


def limit_refusals(policy: Policy, replicas: int, namespace: str) -> list[PolicyRefusal]:
    """Return the refusals because of the number of replicas and of the namespace."""
    found = []
    if replicas > policy.max_replicas:
        found.append(
            PolicyRefusal.of(
                Reason.ERROR_REASON_TOO_MANY_REPLICAS,
                f"{replicas} replicas are more than MAX_REPLICAS, which is {policy.max_replicas}",
                {"replicas": str(replicas), "maxReplicas": str(policy.max_replicas)},
            )
        )
    if namespace not in policy.allowed_namespaces:
        allowed = ",".join(policy.allowed_namespaces)
        found.append(
            PolicyRefusal.of(
                Reason.ERROR_REASON_NAMESPACE_NOT_ALLOWED,
                f"the namespace {namespace!r} is not one of ALLOWED_NAMESPACES, which are {allowed}",
                {"namespace": namespace, "allowed": allowed},
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine that engines can run on."""

    free_bytes: int
    """Bytes that a new engine may take."""
    shared_bytes: int = 0
    """Weights of this model that engines on the machine share already; they are not counted again."""
    holders: tuple[Holder, ...] = ()
    """The servers that hold most of its memory."""


def memory_refusals(
    estimate: Callable[[int], MemoryEstimate], context: int, least_context: int, machines: Sequence[Machine]
) -> list[PolicyRefusal]:
    """Return the refusals because of memory: each engine must fit on one of these machines.

    `estimate` returns the memory for a context in tokens; it is larger for a longer context. `least_context` is the shortest context that
    may be proposed instead.
    """
    wanted = estimate(context)
    if fits(wanted, machines):
        return []
    best = max(machines, key=lambda machine: machine.free_bytes, default=Machine(0))
    needed = wanted.total_bytes - min(wanted.shared_weights_bytes, best.shared_bytes)
    metadata = {"neededBytes": str(needed), "freeBytes": str(best.free_bytes)}
    message = f"{_needs(wanted, context, best)}, and {_free(machines)}"
    fitting = largest_fitting_context(estimate, least_context, context, machines)
    places = _places(wanted, machines)
    if fitting:
        metadata["fittingCtxSize"] = str(fitting)
        message += f"; --ctx-size {fitting} would fit"
    elif places:
        metadata["fittingReplicas"] = str(places)
        message += f"; {places} of these engines would fit"
    # Every caller of a check may see all servers.
    message += in_words(best.holders)
    if best.holders:
        metadata["holders"] = ",".join(f"{each.server_uuid}={each.freed_bytes}" for each in best.holders)
    return [PolicyRefusal.of(Reason.ERROR_REASON_DOES_NOT_FIT, message, metadata)]


def fits(wanted: MemoryEstimate, machines: Sequence[Machine]) -> bool:
    """Return whether each engine fits on some machine."""
    return _places(wanted, machines) >= wanted.replicas


def largest_fitting_context(
    estimate: Callable[[int], MemoryEstimate], least: int, most: int, machines: Sequence[Machine]
) -> int:
    """Return the longest context that fits: a multiple of CONTEXT_STEP from `least` to `most` tokens; 0 if none fits."""
    low, high = -(-least // CONTEXT_STEP), most // CONTEXT_STEP
    if low > high or not fits(estimate(low * CONTEXT_STEP), machines):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if fits(estimate(middle * CONTEXT_STEP), machines):
            low = middle
        else:
            high = middle - 1
    return low * CONTEXT_STEP


def _places(wanted: MemoryEstimate, machines: Sequence[Machine]) -> int:
    """Return how many such engines fit. An engine runs on one machine; engines on one machine share mapped weights."""
    places = 0
    for machine in machines:
        left = machine.free_bytes - max(0, wanted.shared_weights_bytes - machine.shared_bytes)
        places += max(left, 0) // wanted.own_bytes
    return places


def _needs(wanted: MemoryEstimate, context: int, machine: Machine) -> str:
    """Return the memory that is needed on this machine, with its parts, in words."""
    weights = f"weights {size(wanted.weights_bytes)}"
    rest = f"KV cache of {context} tokens {size(wanted.kv_cache_bytes)}, buffers {size(wanted.overhead_bytes)}"
    if wanted.shared_weights_bytes and machine.shared_bytes >= wanted.shared_weights_bytes:
        return f"{wanted.replicas} x {size(wanted.own_bytes)} are needed ({rest}; the {weights} are in use already)"
    if wanted.shared_weights_bytes and wanted.replicas > 1:
        once = size(wanted.shared_weights_bytes)
        return f"{once} and {wanted.replicas} x {size(wanted.own_bytes)} are needed ({weights} once, {rest})"
    return f"{wanted.replicas} x {size(wanted.engine_bytes)} are needed ({weights}, {rest})"


def _free(machines: Sequence[Machine]) -> str:
    if len(machines) == 1:
        return f"{size(machines[0].free_bytes)} are free"
    amounts = ", ".join(size(machine.free_bytes) for machine in machines[:8])
    return f"{len(machines)} machines have {amounts} free"
