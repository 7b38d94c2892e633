"""Calculates how much memory of one machine engines take and how much is free. No I/O: numbers in, numbers out.

Weights that are mapped from a file share their pages among all engines of a model. They count once for each model, the rest once for
each engine.

Free memory is the lesser of two bounds:

1. Declared: total - reserve - the memory that these engines take, loaded or not. It does not depend on how the system counts.
2. Measured: the memory that the system has available now - reserve - the memory that engines have yet to allocate. It includes other
   programs. Mapped pages count as available for the system, because it could drop them; a working engine needs them, so they are
   subtracted here. Private memory of the engines is already missing from the available bytes and is not subtracted again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from llamesh.kit.machine_memory import MachineMemory


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory that one engine of a model takes. Zeros mean unknown and count as nothing."""

    model_uuid: str
    own_bytes: int = 0
    """For each engine: KV cache, buffers, the program, weights that are not shared."""
    shared_bytes: int = 0
    """Once for all engines of the model: mapped weights."""

    @property
    def engine_bytes(self) -> int:
        """Bytes that a single engine takes."""
        return self.own_bytes + self.shared_bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """Memory claim of the engines of one server."""

    footprint: Footprint
    engines: int
    in_memory: int = 0
    """Number of these engines that have already allocated their memory."""


def of_one_engine(model_uuid: str, engine_bytes: int, shared_bytes: int) -> Footprint:
    """Return the footprint of an engine from its total bytes and the shared part of them."""
    shared = min(shared_bytes, engine_bytes)
    return Footprint(model_uuid, engine_bytes - shared, shared)


def shared_weights(claims: Iterable[Claim]) -> dict[str, int]:
    """Return the shared bytes of each model that has engines."""
    found: dict[str, int] = {}
    for claim in claims:
        if claim.engines and claim.footprint.shared_bytes:
            model = claim.footprint.model_uuid
            found[model] = max(found.get(model, 0), claim.footprint.shared_bytes)
    return found


def promised(claims: Iterable[Claim]) -> int:
    """Return the bytes that all these engines take, loaded or not."""
    known = list(claims)
    return sum(shared_weights(known).values()) + sum(claim.engines * claim.footprint.own_bytes for claim in known)


def freed(claims: Mapping[str, Claim]) -> dict[str, int]:
    """Return, for each server, the part of `promised` that would become free without it."""
    sharing = Counter(
        claim.footprint.model_uuid for claim in claims.values() if claim.engines and claim.footprint.shared_bytes
    )
    return {
        server_uuid: claim.engines * claim.footprint.own_bytes
        + (claim.footprint.shared_bytes if claim.engines and sharing[claim.footprint.model_uuid] == 1 else 0)
        for server_uuid, claim in claims.items()
    }


def free(memory: MachineMemory, reserve: int, claims: Iterable[Claim]) -> int:
    """Return the bytes that are free in addition to these engines; the module explains the two bounds. Never below 0."""
    known = list(claims)
    by_declaration = memory.total_bytes - reserve - promised(known)
    to_come = sum(max(0, claim.engines - claim.in_memory) * claim.footprint.own_bytes for claim in known)
    by_system = memory.available_bytes - reserve - sum(shared_weights(known).values()) - to_come
    return max(0, min(by_declaration, by_system))


def released(memory: MachineMemory, claim: Claim) -> MachineMemory:
    """Return the memory as it would be without these engines."""
    return replace(memory, available_bytes=memory.available_bytes + claim.in_memory * claim.footprint.own_bytes)


def needed(footprint: Footprint, present: Mapping[str, int]) -> int:
    """Return the bytes that one more engine takes. `present`: shared bytes of each model that are counted already."""
    return footprint.own_bytes + max(0, footprint.shared_bytes - present.get(footprint.model_uuid, 0))
