"""What engines take of one machine's memory, and what is left. Pure: numbers in, numbers out.

Weights that are mapped from a file are the same pages for all engines of a model: they count once a model, everything else once an engine.

What is free is bounded twice, and the lesser bound counts:

1. By what is declared: total - reserve - everything that all these engines take, in memory yet or not. It holds however the system counts.
2. By what the system has available now, less the reserve and what is still to come: it also sees other programs. Mapped pages count as
   available for the system, because it could drop them; an engine that works needs them, so they are subtracted here. What engines of
   their own have in memory is missing from the available bytes already and is not subtracted again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Bytes of memory of this machine, or of the container that we run in."""

    total_bytes: int
    available_bytes: int
    """What the system could give to a program now. Pages of files count as available, mapped or not."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one engine of a model takes. All 0: not known, counts nothing."""

    model_uuid: str
    own_bytes: int = 0
    """For each engine: KV cache, buffers, the program, weights that are not shared."""
    shared_bytes: int = 0
    """Once for all engines of the model: mapped weights."""

    @property
    def engine_bytes(self) -> int:
        """What a single engine takes."""
        return self.own_bytes + self.shared_bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """Engines of one server."""

    footprint: Footprint
    engines: int
    in_memory: int = 0
    """So many of them have allocated what they need."""


def of_one_engine(model_uuid: str, engine_bytes: int, shared_bytes: int) -> Footprint:
    """The footprint of an engine that takes so many bytes in all, of which some are shared."""
    shared = min(shared_bytes, engine_bytes)
    return Footprint(model_uuid, engine_bytes - shared, shared)


def shared_weights(claims: Iterable[Claim]) -> dict[str, int]:
    """The shared bytes of each model that has engines."""
    found: dict[str, int] = {}
    for claim in claims:
        if claim.engines and claim.footprint.shared_bytes:
            model = claim.footprint.model_uuid
            found[model] = max(found.get(model, 0), claim.footprint.shared_bytes)
    return found


def promised(claims: Iterable[Claim]) -> int:
    """Bytes that all these engines take, whether they are in memory yet or not."""
    known = list(claims)
    return sum(shared_weights(known).values()) + sum(claim.engines * claim.footprint.own_bytes for claim in known)


def freed(claims: Mapping[str, Claim]) -> dict[str, int]:
    """What of `promised` is each server's alone: what would be free without it."""
    sharing = Counter(
        claim.footprint.model_uuid for claim in claims.values() if claim.engines and claim.footprint.shared_bytes
    )
    return {
        server_uuid: claim.engines * claim.footprint.own_bytes
        + (claim.footprint.shared_bytes if claim.engines and sharing[claim.footprint.model_uuid] == 1 else 0)
        for server_uuid, claim in claims.items()
    }


def free(memory: MachineMemory, reserve: int, claims: Iterable[Claim]) -> int:
    """Bytes that a further engine may have, beside these; see the module. Never below 0."""
    known = list(claims)
    by_declaration = memory.total_bytes - reserve - promised(known)
    to_come = sum(max(0, claim.engines - claim.in_memory) * claim.footprint.own_bytes for claim in known)
    by_system = memory.available_bytes - reserve - sum(shared_weights(known).values()) - to_come
    return max(0, min(by_declaration, by_system))


def released(memory: MachineMemory, claim: Claim) -> MachineMemory:
    """The memory as it would be without these engines."""
    return replace(memory, available_bytes=memory.available_bytes + claim.in_memory * claim.footprint.own_bytes)


def needed(footprint: Footprint, present: Mapping[str, int]) -> int:
    """Bytes that one more engine takes. `present`: shared bytes of each model that are counted already."""
    return footprint.own_bytes + max(0, footprint.shared_bytes - present.get(footprint.model_uuid, 0))
