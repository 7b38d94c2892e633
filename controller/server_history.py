"""In-memory history of one server between reconciliations, from which the observed state is built.

Invariant: the history can be lost without harm, because later reconciliations rebuild it. Nothing here has side effects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.declared import DeclaredServer, RunState
from controller.observed import ObservedEngine, ObservedState
from controller.publication import Publication
from controller.restarts import STEADY_SECONDS, RestartHistory, after_exit, after_ready, after_steady
from controller.runtimes import Engine, EngineLoad, EnginePhase
from controller.starts import NotEnoughMemory, Queued


@dataclass(slots=True)
class ServerHistory:
    """History of one server. Times are in seconds of the reconciler's clock."""

    publication: Publication
    last_activity: float = 0.0
    spec_hash: str = ""
    restart_histories: dict[int, RestartHistory] = field(default_factory=dict)
    """Restart history of each replica with the present spec."""
    draining: dict[str, float] = field(default_factory=dict)
    """Draining instances, each with the time at which its drain began."""
    loads: dict[str, EngineLoad | None] = field(default_factory=dict)
    pending_starts: dict[int, Queued | NotEnoughMemory] = field(default_factory=dict)
    """Replicas whose start had to wait at the last reconciliation."""
    replace_in_place: set[int] = field(default_factory=set)
    """Replicas whose old engine must end before the new one has room."""
    generation: int = 0
    """Generation of the spec at the last reconciliation."""
    reconciled: tuple[int, RunState, bool] | None = None
    """Desired version at the last reconciliation: see `desired_version`."""

    def update(self, spec_hash: str, engines: Sequence[Engine], now: float) -> list[str]:
        """Record engines that have ended or were steady since the last reconciliation. Returns the instances that have ended."""
        if self.spec_hash != spec_hash:
            self.spec_hash = spec_hash
            self.restart_histories.clear()
            self.replace_in_place.clear()
        ended = []
        for engine in engines:
            restarts = self.restart_histories.get(engine.replica, RestartHistory())
            ready_for = None if engine.ready_since is None else now - engine.ready_since
            if engine.exit is not None:
                if engine.spec_hash == spec_hash:
                    self.restart_histories[engine.replica] = after_exit(restarts, engine.exit, ready_for, now)
                self.draining.pop(engine.instance, None)
                self.loads.pop(engine.instance, None)
                ended.append(engine.instance)
            elif restarts.failures and ready_for is not None:
                self.restart_histories[engine.replica] = (after_steady if ready_for >= STEADY_SECONDS else after_ready)(
                    restarts
                )
        return ended

    def note_load(self, instance: str, load: EngineLoad | None, now: float) -> None:
        """Record the load of an engine. A work counter that has grown counts as activity."""
        if instance in self.draining:
            return  # The reconciler polls a draining engine itself, because the time of the poll matters.
        before = self.loads.get(instance)
        self.loads[instance] = load
        if load is None or load.busy or before is None or load.work_done != before.work_done:
            self.last_activity = now

    def make_room(self, engines: Sequence[Engine]) -> None:
        """Release one more old engine before its replacement starts, to free memory. One at a time, because one may be enough."""
        old = [
            engine for engine in engines if engine.spec_hash != self.spec_hash and engine.phase is not EnginePhase.ENDED
        ]
        leaving = any(engine.phase is EnginePhase.STOPPING or engine.instance in self.draining for engine in old)
        replicas = {engine.replica for engine in old} - self.replace_in_place
        if replicas and not leaving:
            self.replace_in_place.add(min(replicas))

    def observe(
        self,
        spec_hash: str,
        engines: Sequence[Engine],
        now: float,
        model_available: bool,
        model_names: Sequence[str] = (),
    ) -> ObservedState:
        """Return the observed state of the server, compared with its present spec."""
        return ObservedState(
            engines=[self._observed(engine) for engine in engines],
            now=now,
            restart_histories=self.restart_histories if self.spec_hash == spec_hash else {},
            model_available=model_available,
            last_activity=self.last_activity,
            envoy_connected=self.publication.envoy_connected,
            routable=self.publication.is_routed(*model_names),
            replace_in_place=frozenset(self.replace_in_place),
            pending_starts=self.pending_starts,
        )

    def steady_in(self, engines: Sequence[Engine], now: float) -> float:
        """Return the seconds until an engine that failed before counts as steady; infinite if there is none."""
        proving = [
            engine.ready_since + STEADY_SECONDS - now
            for engine in engines
            if engine.ready_since is not None and self.restart_histories.get(engine.replica, RestartHistory()).failures
        ]
        return max(0.0, min(proving, default=math.inf))

    def _observed(self, engine: Engine) -> ObservedEngine:
        load = self.loads.get(engine.instance)
        return ObservedEngine(
            engine,
            published=self.publication.is_published(engine.instance),
            withdrawn=self.publication.is_withdrawn(engine.instance),
            draining_since=self.draining.get(engine.instance),
            busy=load.busy if load else None,
        )


def desired_version(declared: DeclaredServer) -> tuple[int, RunState, bool]:
    """Return a key that differs if anything of the declared server has changed."""
    return declared.generation, declared.run_state, declared.removing
