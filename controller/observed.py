"""The desired and the observed state of one server, from which `controller.plan` decides. Values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controller.declared import RunState, engines_to_run
from controller.restarts import RestartHistory
from controller.runtimes import Engine, EnginePhase, Liveness
from controller.starts import NotEnoughMemory, Queued


@dataclass(frozen=True, slots=True)
class Desired:
    """Desired state of one server."""

    replicas: int
    spec_hash: str
    run_state: RunState = RunState.AWAKE
    removing: bool = False
    idle_sleep: float = 0.0
    """Seconds without a request after which the server falls asleep; 0: never."""
    grace: float = 20.0
    """Seconds that running requests may take to finish after an engine is stopped."""
    accepted: bool = True
    """Whether the contract service has accepted the spec."""

    @property
    def engine_count(self) -> int:
        """Number of engines that should run now."""
        return engines_to_run(self.replicas, self.run_state, self.removing)


@dataclass(frozen=True, slots=True)
class ObservedEngine:
    """One engine, with its state at Envoy and its load."""

    engine: Engine
    published: bool = False
    """Envoy has acknowledged an endpoint configuration with this engine."""
    withdrawn: bool = False
    """Envoy has acknowledged an endpoint configuration without this engine, or no Envoy is connected."""
    draining_since: float | None = None
    busy: bool | None = None
    """Whether the engine works on a request; None if the engine did not answer."""

    @property
    def ready(self) -> bool:
        """Whether the engine answers and should keep running."""
        return self.answers and self.draining_since is None

    @property
    def answers(self) -> bool:
        """Whether requests may be sent to the engine."""
        return self.engine.phase is EnginePhase.READY and self.engine.liveness is Liveness.ALIVE

    @property
    def lost(self) -> bool:
        """Whether the engine can get no more requests."""
        return self.engine.phase is EnginePhase.READY and self.engine.liveness is Liveness.LOST


@dataclass(frozen=True, slots=True)
class ObservedState:
    """Observed state of one server."""

    engines: Sequence[ObservedEngine]
    now: float
    restart_histories: Mapping[int, RestartHistory] = field(default_factory=dict)
    model_available: bool = True
    last_activity: float = 0.0
    """Monotonic time at which the server last had a request or woke."""
    envoy_connected: bool = True
    """Whether a connected Envoy acknowledges its configuration."""
    routable: bool = False
    """Whether Envoy routes requests by the server's present name."""
    replace_in_place: frozenset[int] = frozenset()
    """Replicas whose old engine must end before there is room for the new one."""
    pending_starts: Mapping[int, Queued | NotEnoughMemory] = field(default_factory=dict)
    """Replicas whose start must wait for memory or for other starts."""
    obstacle: str = ""
    """Why the place where engines run does not take what the server needs; empty if it does."""

    def restart_history(self, replica: int) -> RestartHistory:
        """Return the restart history of a replica."""
        return self.restart_histories.get(replica, RestartHistory())

    def serves(self, observed: ObservedEngine | None) -> bool:
        """Return whether requests reach this engine (or would, if an Envoy were connected)."""
        return observed is not None and observed.ready and (observed.published or not self.envoy_connected)
