"""Decides what is to be done for one server. Pure: a wish, what is seen and a clock in; actions and endpoints out.

The rules, in the order of their weight:

1. Make before break: an engine that answers keeps answering until what replaces it answers too and Envoy knows it.
2. An engine is told to end only when Envoy no longer sends it requests, and then once it is idle or patience is over.
3. One engine more than wanted at most while parameters change: replicas are replaced one after the other.
4. An engine that failed is started again at once, then with growing pauses.
5. An engine that does not answer, or makes no progress, gets no new request until it does; its runtime ends it if it never does. One
   that nobody can reach any more is replaced, and may finish what it works on.
6. If there is no room in memory for an engine beside the one that it replaces, the old one goes first, and requests wait meanwhile.
7. A server that sleeps when idle falls asleep only with nothing running; woken before its engines have ended, it keeps them.

Nothing is remembered between two plans but what `Seen` holds, so a plan made twice is the same, and one made after a crash goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from controller.declared import RunState, engines_to_run
from controller.restarts import RestartHistory
from controller.runtimes import Engine, EnginePhase, Liveness
from controller.starts import NotEnoughMemory, Queued

PATIENCE = 600.0
"""Seconds that an engine which nobody waits for may take to become idle."""
IDLE_POLL_SECONDS = 0.1
"""How often a draining engine is looked at."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What is wanted of one server."""

    replicas: int
    spec_hash: str
    run_state: RunState = RunState.AWAKE
    removing: bool = False
    idle_sleep: float = 0.0
    """Seconds; 0: never."""
    grace: float = 20.0
    """Seconds that running requests get where someone waits for the end."""

    @property
    def engine_count(self) -> int:
        """Engines that are to run now."""
        return engines_to_run(self.replicas, self.run_state, self.removing)


@dataclass(frozen=True, slots=True)
class ObservedEngine:
    """One engine and what Envoy and the reconciler know of it."""

    engine: Engine
    published: bool = False
    """Envoy has acknowledged that it takes requests."""
    withdrawn: bool = False
    """Envoy has acknowledged that it does not, or there is no Envoy to say so."""
    draining_since: float | None = None
    busy: bool | None = None
    """Whether it works on a request; None: it does not say."""

    @property
    def ready(self) -> bool:
        """It answers and is to go on."""
        return self.answers and self.draining_since is None

    @property
    def answers(self) -> bool:
        """Requests may be sent to it."""
        return self.engine.phase is EnginePhase.READY and self.engine.liveness is Liveness.ALIVE

    @property
    def lost(self) -> bool:
        """It can get no requests any more."""
        return self.engine.phase is EnginePhase.READY and self.engine.liveness is Liveness.LOST


@dataclass(frozen=True, slots=True)
class ObservedState:
    """What is seen of one server."""

    engines: Sequence[ObservedEngine]
    now: float
    restart_histories: Mapping[int, RestartHistory] = field(default_factory=dict)
    model_available: bool = True
    last_activity: float = 0.0
    """When it last had a request or woke."""
    envoy_connected: bool = True
    """Whether an Envoy acknowledges what it is sent."""
    routable: bool = False
    """Whether Envoy routes requests by the server's present name."""
    replace_in_place: frozenset[int] = frozenset()
    """Replicas whose old engine must go before there is room for the new one."""
    pending_starts: Mapping[int, Queued | NotEnoughMemory] = field(default_factory=dict)
    """Replicas whose start is wanted and may not be yet."""

    def restart_history(self, replica: int) -> RestartHistory:
        """What happened to a replica."""
        return self.restart_histories.get(replica, RestartHistory())

    def serves(self, observed: ObservedEngine | None) -> bool:
        """Whether requests reach this engine (or would, if an Envoy were there)."""
        return observed is not None and observed.ready and (observed.published or not self.envoy_connected)


@dataclass(frozen=True, slots=True)
class Start:
    """Start an engine for a replica."""

    replica: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Let no new request reach an engine."""

    instance: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Take a draining engine back."""

    instance: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell an engine to end."""

    instance: str
    grace: float


@dataclass(frozen=True, slots=True)
class Locate:
    """Find the model's file."""


@dataclass(frozen=True, slots=True)
class FallAsleep:
    """Note that the server sleeps because it was idle."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing is left of a removed server: forget it."""


Action = Start | Drain | Resume | Stop | Locate | FallAsleep | Forget


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done now."""

    actions: tuple[Action, ...]
    endpoints: tuple[str, ...]
    """Instances that requests are to reach once the actions are done."""
    requeue_after: float = math.inf
    """Seconds after which time alone may change the plan."""


def plan(desired: Desired, state: ObservedState) -> Decision:
    """Decide for one server."""
    return _Plan(desired, state).decide()


class _Plan:
    def __init__(self, desired: Desired, state: ObservedState) -> None:
        self._desired = desired
        self._state = state
        self._actions: list[Action] = []
        self._requeue_after = math.inf
        self._live = [
            observed for observed in state.engines if observed.engine.phase in (EnginePhase.STARTING, EnginePhase.READY)
        ]
        self._current = _one_each(
            observed
            for observed in self._live
            if observed.engine.spec_hash == desired.spec_hash
            and observed.engine.replica < desired.engine_count
            and not observed.lost
        )
        self._bridges = _one_each(
            observed
            for observed in self._live
            if observed.engine.spec_hash != desired.spec_hash
            and observed.engine.phase is EnginePhase.READY
            and not observed.lost
            and observed.engine.replica < desired.engine_count
            and observed.engine.replica not in state.replace_in_place
            and not state.serves(self._current.get(observed.engine.replica))
        )

    def decide(self) -> Decision:
        kept = [*self._current.values(), *self._bridges.values()]
        for observed in kept:
            if observed.draining_since is not None:
                self._actions.append(Resume(observed.engine.instance))
        names = {observed.engine.instance for observed in kept}
        for observed in self._live:
            if observed.engine.instance not in names:
                self._retire(observed)
        self._start_missing()
        self._fall_asleep()
        if self._desired.removing and not self._state.engines:
            self._actions.append(Forget())
        ready = sorted((observed for observed in kept if observed.answers), key=_place)
        return Decision(
            tuple(self._actions), tuple(observed.engine.instance for observed in ready), self._requeue_after
        )

    def _retire(self, observed: ObservedEngine) -> None:
        """Rule 2. An engine that never was ready has no requests and ends at once."""
        instance = observed.engine.instance
        if observed.engine.phase is EnginePhase.STARTING:
            self._actions.append(Stop(instance, 0.0))
        elif observed.draining_since is None:
            self._actions.append(Drain(instance))
        elif observed.withdrawn:
            waited_for = self._desired.removing or self._desired.run_state is RunState.ASLEEP_REQUESTED
            # The engine itself waits for its requests as long as the grace is; beyond that it is asked first.
            patience = 0.0 if waited_for else PATIENCE
            left = observed.draining_since + patience - self._state.now
            if left <= 0 or observed.busy is False:
                self._actions.append(Stop(instance, self._desired.grace))
            else:
                self._requeue_in(min(left, IDLE_POLL_SECONDS))

    def _start_missing(self) -> None:
        """Rules 3 and 4."""
        surge_is_free = not any(
            replica in self._current and not self._state.serves(self._current[replica]) for replica in self._bridges
        )
        for replica in range(self._desired.engine_count):
            if replica in self._current:
                continue
            if replica in self._bridges:
                if not surge_is_free:
                    continue
                surge_is_free = False
            pause = self._state.restart_history(replica).not_before - self._state.now
            if pause > 0:
                self._requeue_in(pause)
            elif self._state.model_available:
                self._actions.append(Start(replica))
            elif Locate() not in self._actions:
                self._actions.append(Locate())

    def _fall_asleep(self) -> None:
        """Rule 7."""
        if not self._desired.engine_count or not self._desired.idle_sleep:
            return
        if self._bridges or any(observed.engine.phase is EnginePhase.STARTING for observed in self._live):
            return
        if any(observed.busy for observed in self._live):
            # Idle from now on at the earliest, and no event tells of it.
            self._requeue_in(self._desired.idle_sleep)
            return
        # A request that waited for the engine comes just after it was ready.
        latest = max(self._state.last_activity, *(observed.engine.ready_since or 0.0 for observed in self._live), 0.0)
        left = latest + self._desired.idle_sleep - self._state.now
        if left > 0:
            self._requeue_in(left)
        else:
            self._actions.append(FallAsleep())

    def _requeue_in(self, seconds: float) -> None:
        self._requeue_after = min(self._requeue_after, seconds)


def _one_each(engines: Iterable[ObservedEngine]) -> dict[int, ObservedEngine]:
    """The best engine of each replica: one that answers before one that does not, then one that does not drain, then the oldest."""
    best: dict[int, ObservedEngine] = {}
    for observed in engines:
        replica = observed.engine.replica
        if replica not in best or _rank(observed) < _rank(best[replica]):
            best[replica] = observed
    return best


def _rank(observed: ObservedEngine) -> tuple[bool, bool, bool, float, str]:
    engine = observed.engine
    return (
        not observed.answers,
        engine.phase is not EnginePhase.READY,
        observed.draining_since is not None,
        engine.start_time.timestamp(),
        engine.instance,
    )


def _place(observed: ObservedEngine) -> tuple[int, str]:
    return observed.engine.replica, observed.engine.instance
