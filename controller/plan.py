"""Plans the next actions for one server. No I/O: desired state, observed state and a clock in; actions and endpoints out.

The rules, the most important first:

1. Make before break: a ready engine keeps its requests until its replacement is ready and Envoy has acknowledged the replacement.
2. An engine is stopped only after Envoy has acknowledged to send it no more requests, and then once it is idle or its grace period ends.
3. A roll-out runs at most one extra engine: replicas are replaced one after the other.
4. A failed engine is started again at once, then with exponential backoff.
5. An engine that does not answer or makes no progress gets no new requests until it does. Its runtime kills it if it never does. An
   engine whose address is lost is replaced, but may finish its running requests.
6. If memory has no room for both an engine and its replacement, the old engine is stopped first and requests are held in the meantime.
7. A server with `idle_sleep` falls asleep only while no request runs and no engine starts or is about to start, unless that start waits
   for memory. If it is woken before its engines have ended, it keeps them.

Invariant: all state is in `ObservedState`, so the same input gives the same plan, and a restarted controller continues the work.

Worked example: a roll-out of two replicas. Engines a (replica 0) and b (replica 1) run, then the parameters change. Each line is one
plan; tests/unit/test_controller_plan_rolls_out.py replays them.

    step  observed                                             actions                 endpoints
    1     a, b old and ready                                   Start(0)                a b
    2     c starts as replica 0                                none                    a b
    3     c ready, Envoy does not know it yet                  none                    a c b
    4     Envoy has acknowledged c                             Drain(a), Start(1)      c b
    5     a withdrawn but busy, d starts as replica 1          none (polls a)          c b
    6     a idle, d ready and acknowledged                     Stop(a), Drain(b)       c d
    7     a ended, b withdrawn and idle                        Stop(b)                 c d
    8     b ended                                              none                    c d
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from controller.actions import Action, Decision, Drain, FallAsleep, Forget, Locate, Resume, Start, Stop
from controller.declared import RunState
from controller.idleness import idle_left
from controller.observed import Desired, ObservedEngine, ObservedState
from controller.runtimes import EnginePhase
from controller.starts import NotEnoughMemory

PATIENCE = 600.0
"""Seconds that a retired engine may take to become idle if no caller waits for its end."""
IDLE_POLL_SECONDS = 0.1
"""Seconds between two polls of a draining engine."""


def plan(desired: Desired, state: ObservedState) -> Decision:
    """Decide the actions and endpoints of one server."""
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
        """Apply rule 2. An engine that was never ready has no requests and is stopped at once."""
        instance = observed.engine.instance
        if observed.engine.phase is EnginePhase.STARTING:
            self._actions.append(Stop(instance, 0.0))
        elif observed.draining_since is None:
            self._actions.append(Drain(instance))
        elif observed.withdrawn:
            waited_for = self._desired.removing or self._desired.run_state is RunState.ASLEEP_REQUESTED
            # A stopped engine has the grace period for its requests. Before the stop it is polled for PATIENCE, unless a caller waits.
            patience = 0.0 if waited_for else PATIENCE
            left = observed.draining_since + patience - self._state.now
            if left <= 0 or observed.busy is False:
                self._actions.append(Stop(instance, self._desired.grace))
            else:
                self._requeue_in(min(left, IDLE_POLL_SECONDS))

    def _start_missing(self) -> None:
        """Apply rules 3 and 4."""
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
        """Apply rule 7. The idle time begins when the last engine is ready.

        A start that waits for memory keeps the server awake only while it has no engine. An idle engine holds memory that other servers
        may need, and the start may wait for ever; without an engine the server holds none, and sleep would hide why it does not answer.
        """
        if not self._desired.engine_count or not self._desired.idle_sleep:
            return
        if self._bridges or any(observed.engine.phase is EnginePhase.STARTING for observed in self._live):
            return
        if any(self._precedes_sleep(action) for action in self._actions):
            return
        left = idle_left(self._desired, self._state, self._live)
        if left > 0:
            self._requeue_in(left)
        else:
            self._actions = [action for action in self._actions if not isinstance(action, Start)]
            self._actions.append(FallAsleep())

    def _precedes_sleep(self, action: Action) -> bool:
        """Return whether an engine that is about to start must be ready before the idle time begins."""
        if isinstance(action, Start):
            waits_for_memory = isinstance(self._state.pending_starts.get(action.replica), NotEnoughMemory)
            return not (waits_for_memory and self._current)
        return isinstance(action, Locate)

    def _requeue_in(self, seconds: float) -> None:
        self._requeue_after = min(self._requeue_after, seconds)


def _one_each(engines: Iterable[ObservedEngine]) -> dict[int, ObservedEngine]:
    """Return the best engine of each replica: one that answers, else one that does not drain, else the oldest."""
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
