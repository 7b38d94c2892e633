"""Schedules starts of engines: a limited number at the same time, each only if memory has room, in a fair order.

In each reconciliation `StartGate` calls `observe` with the engines that a server has, then `request` with the replicas that the plan
starts. A start that is not possible now stays in the queue. After each reconciliation the reconciler calls `startable` and queues the
servers whose start is possible. The number of simultaneous starts is limited because loading a model keeps a core busy.

The order: servers with waiting requests and no engine come first, then the start that has waited longest. A start for which there is not
enough memory is skipped and blocks no other start. `decide` has no side effects; `StartScheduler` keeps the queue.

Invariant: no engine is started without a `StartNow`, which counts against the limit and the memory from the moment when it is granted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from controller.footprint import Claim, Footprint, free, freed, needed, released, shared_weights
from controller.runtimes import Engine, EnginePhase
from llamesh.kit.holders import Holder, in_words, largest
from llamesh.kit.machine_memory import MachineMemory
from llamesh.sizes import size

SLOW_START_SECONDS = 60.0
"""Seconds after which a loading engine no longer counts against the limit, so that a slow disk does not delay all other starts."""


@dataclass(frozen=True, slots=True)
class PendingStart:
    """A start that a server has requested."""

    server_uuid: str
    replica: int
    footprint: Footprint
    since: float
    """Time at which the start was requested, on the caller's clock."""
    urgent: bool = False
    """Whether requests wait for the server and it has no engine."""


@dataclass(frozen=True, slots=True)
class StartNow:
    """The engine may start."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The start waits for other starts: the limit is reached or other starts come first."""

    others: int

    def __str__(self) -> str:
        return f"waits for {self.others} other start{'' if self.others == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class NotEnoughMemory:
    """The start waits for memory."""

    needed_bytes: int
    free_bytes: int
    holders: tuple[Holder, ...] = ()
    """The other servers that hold the most memory. They are shown only to callers who may see these servers."""

    def __str__(self) -> str:
        return f"waits for memory: needs {size(self.needed_bytes)}, {size(self.free_bytes)} are free"

    @property
    def explained(self) -> str:
        """Return the reason with the servers that hold memory and the remedy."""
        if not self.holders:
            return str(self)
        return f"{self}{in_words(self.holders)}: let one sleep (`llamesh sleep`), or stop it"


StartDecision = StartNow | Queued | NotEnoughMemory
Key = tuple[str, int]
"""Server and replica."""


def decide(
    waiting: Iterable[PendingStart],
    starting: int,
    limit: int,
    memory: MachineMemory,
    reserve: int,
    claims: Sequence[Claim],
) -> dict[Key, StartDecision]:
    """Decide every pending start. `starting` is the number of engines that are starting; `claims` has all engines that run or start."""
    verdicts: dict[Key, StartDecision] = {}
    room = free(memory, reserve, claims)
    present = shared_weights(claims)
    ahead = starting
    for each in sorted(waiting, key=_turn):
        wants = needed(each.footprint, present)
        if wants > room:
            verdicts[each.server_uuid, each.replica] = NotEnoughMemory(wants, room)
            continue
        if ahead < limit:
            verdicts[each.server_uuid, each.replica] = StartNow()
            room -= wants
            model, shared = each.footprint.model_uuid, each.footprint.shared_bytes
            present[model] = max(present.get(model, 0), shared)
        else:
            verdicts[each.server_uuid, each.replica] = Queued(ahead)
        ahead += 1
    return verdicts


def _turn(each: PendingStart) -> tuple[bool, float, str, int]:
    return not each.urgent, each.since, each.server_uuid, each.replica


@dataclass(frozen=True, slots=True)
class _Running:
    """Engines of one server as last observed."""

    claim: Claim
    started: tuple[float, ...]
    """Start times of the engines that are starting, on the wall clock."""


class StartScheduler:
    """Queue of the pending starts, and the memory claims of the running engines. Belongs to one event loop."""

    def __init__(
        self,
        limit: int,
        reserve: int,
        memory: Callable[[], MachineMemory],
        waits_for: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`memory()` reads the machine's memory; `waits_for(server_uuid)` returns whether requests wait for a server."""
        self._limit = limit
        self._reserve = reserve
        self._memory = memory
        self._waits_for = waits_for
        self._clock = clock
        self._wall_clock = wall_clock
        self._waiting: dict[Key, PendingStart] = {}
        self._running: dict[str, _Running] = {}

    def observe(self, server_uuid: str, footprint: Footprint, engines: Iterable[Engine]) -> None:
        """Record the engines that a server has now."""
        live = [engine for engine in engines if engine.phase is not EnginePhase.ENDED]
        starting = tuple(engine.start_time.timestamp() for engine in live if engine.phase is EnginePhase.STARTING)
        if live:
            self._running[server_uuid] = _Running(Claim(footprint, len(live), len(live) - len(starting)), starting)
        else:
            self._running.pop(server_uuid, None)

    def request(self, server_uuid: str, replicas: Sequence[int], footprint: Footprint) -> Mapping[int, StartDecision]:
        """Request starts of these replicas. A start that may not happen now keeps its place until the next request."""
        now = self._clock()
        wanted = {(server_uuid, replica) for replica in replicas}
        for key in [key for key in self._waiting if key[0] == server_uuid and key not in wanted]:
            del self._waiting[key]
        if not wanted:
            return {}
        for key in wanted:
            before = self._waiting.get(key)
            self._waiting[key] = PendingStart(*key, footprint, before.since if before else now)
        verdicts = self._decide()
        for key in wanted:
            if isinstance(verdicts[key], StartNow):
                self._grant(self._waiting.pop(key))
        return {replica: self._explained(server_uuid, verdicts[server_uuid, replica]) for replica in replicas}

    def forget(self, server_uuid: str) -> None:
        """Forget a removed server."""
        self.request(server_uuid, (), Footprint(""))
        self._running.pop(server_uuid, None)

    def startable(self) -> set[str]:
        """Return the servers with a pending start that would be allowed now."""
        if not self._waiting:
            return set()
        return {server_uuid for (server_uuid, _), verdict in self._decide().items() if isinstance(verdict, StartNow)}

    def claim(self, server_uuid: str) -> Claim | None:
        """Return the memory claim of a server's engines as last observed; None if it has none."""
        running = self._running.get(server_uuid)
        return running.claim if running else None

    def shortage_without(self, server_uuid: str, footprint: Footprint) -> NotEnoughMemory | None:
        """Return the memory shortage for one engine of a server if it had none; None if there is room."""
        claims = [running.claim for name, running in self._running.items() if name != server_uuid]
        own = self.claim(server_uuid)
        memory = released(self._memory(), own) if own else self._memory()
        wants, room = needed(footprint, shared_weights(claims)), free(memory, self._reserve, claims)
        return NotEnoughMemory(wants, room) if wants > room else None

    def memory_for(self, footprint: Footprint) -> tuple[int, int]:
        """Return the bytes that one more engine needs, and the bytes that are free."""
        claims = [running.claim for running in self._running.values()]
        return needed(footprint, shared_weights(claims)), free(self._memory(), self._reserve, claims)

    def _explained(self, server_uuid: str, verdict: StartDecision) -> StartDecision:
        if not isinstance(verdict, NotEnoughMemory):
            return verdict
        claims = {name: running.claim for name, running in self._running.items()}
        holders = [
            Holder(name, claims[name].footprint.model_uuid, freed_bytes)
            for name, freed_bytes in freed(claims).items()
            if name != server_uuid
        ]
        return replace(verdict, holders=largest(holders))

    def _decide(self) -> dict[Key, StartDecision]:
        waiting = [replace(each, urgent=self._urgent(each.server_uuid)) for each in self._waiting.values()]
        claims = [running.claim for running in self._running.values()]
        return decide(waiting, self._starting(), self._limit, self._memory(), self._reserve, claims)

    def _urgent(self, server_uuid: str) -> bool:
        return server_uuid not in self._running and self._waits_for(server_uuid)

    def _starting(self) -> int:
        late = self._wall_clock() - SLOW_START_SECONDS
        return sum(moment > late for running in self._running.values() for moment in running.started)

    def _grant(self, granted: PendingStart) -> None:
        """Count the engine as starting until the server is observed the next time."""
        before = self._running.get(granted.server_uuid, _Running(Claim(granted.footprint, 0), ()))
        claim = replace(before.claim, engines=before.claim.engines + 1)
        self._running[granted.server_uuid] = _Running(claim, (*before.started, self._wall_clock()))
