"""From any state of the engines, repeated plans reach the desired state, and no answering replica is lost meanwhile."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

import pytest

from controller.actions import Action, Decision, Drain, FallAsleep, Forget, Locate, Resume, Start, Stop
from controller.declared import RunState
from controller.observed import Desired, ObservedEngine, ObservedState
from controller.plan import plan
from controller.restarts import RestartHistory, after_exit
from controller.runtimes import EngineExit, EnginePhase, Liveness
from controller.starts import NotEnoughMemory
from tests.unit.planned import (
    GRACE,
    NOW,
    ONE,
    decide,
    engine,
    ready,
)


@dataclass
class World:
    """A random runtime and Envoy from one seed: engines start slowly and fail, files and memory go away, Envoy acknowledges late."""

    random: random.Random
    desired: Desired
    now: float = NOW
    engines: dict[str, ObservedEngine] = field(default_factory=dict)
    restart_histories: dict[int, RestartHistory] = field(default_factory=dict)
    sent: tuple[str, ...] = ()
    acknowledged: tuple[str, ...] = ()
    model_here: bool = True
    memory_is_free: bool = True
    last_activity: float = NOW
    pending_starts: dict[int, NotEnoughMemory] = field(default_factory=dict)
    served: bool = False
    """Whether an engine was ready or failed since the server last woke."""
    forgotten: bool = False
    started: int = 0

    def step(self, *, calm: bool) -> Decision:
        """Reconcile once, apply the actions, and let a random event happen."""
        if calm or self.random.random() < 0.1:
            self.last_activity = self.now
        decision = plan(self.desired, self._observed())
        assert decision == plan(self.desired, self._observed())
        self._check(decision)
        for action in self._admitted(decision):
            self._act(action)
        self.sent = decision.endpoints
        self._happen(calm)
        self.now += 0.5
        return decision

    def _observed(self) -> ObservedState:
        return ObservedState(
            list(self.engines.values()),
            self.now,
            dict(self.restart_histories),
            self.model_here,
            self.last_activity,
            pending_starts=dict(self.pending_starts),
        )

    def _admitted(self, decision: Decision) -> list[Action]:
        """Hold the starts back while no memory is free, as the start gate does."""
        starts = [action.replica for action in decision.actions if isinstance(action, Start)]
        self.pending_starts = {} if self.memory_is_free else dict.fromkeys(starts, NotEnoughMemory(2, 1))
        return [
            action
            for action in decision.actions
            if not (isinstance(action, Start) and action.replica in self.pending_starts)
        ]

    def _check(self, decision: Decision) -> None:
        serving = [observed for observed in self.engines.values() if observed.ready and observed.published]
        if self.desired.engine_count and serving:
            covered = {
                observed.engine.replica for observed in serving if observed.engine.replica < self.desired.engine_count
            }
            kept = {self.engines[name].engine.replica for name in decision.endpoints}
            assert covered <= kept, "a replica that answered was taken away"
        for action in decision.actions:
            if isinstance(action, Stop):
                target = self.engines[action.instance]
                assert target.withdrawn or target.engine.phase is EnginePhase.STARTING, (
                    "ended while Envoy sends requests"
                )
        if FallAsleep() in decision.actions:
            assert not [action for action in decision.actions if isinstance(action, Start | Locate)], (
                "starts and sleeps"
            )
            assert self.served, "asleep before the first engine was ready"
            assert self.now - self.last_activity >= self.desired.idle_sleep, "asleep too early"
        running = sum(
            observed.engine.phase in (EnginePhase.STARTING, EnginePhase.READY) for observed in self.engines.values()
        )
        starts = sum(isinstance(action, Start) for action in decision.actions)
        idle = sum(observed.draining_since is not None for observed in self.engines.values())
        drains = sum(isinstance(action, Drain | Stop) for action in decision.actions)
        assert running + starts - idle - drains <= self.desired.engine_count + 1 or not starts, "more than one surges"

    def _act(self, action: Action) -> None:
        match action:
            case Start(replica):
                self.started += 1
                name = f"e{self.started}"
                self.engines[name] = ObservedEngine(
                    engine(name, replica, EnginePhase.STARTING, self.desired.spec_hash, age=self.started),
                    withdrawn=True,
                )
            case Drain(name):
                self.engines[name] = replace(self.engines[name], draining_since=self.now, busy=None)
            case Resume(name):
                self.engines[name] = replace(self.engines[name], draining_since=None)
            case Stop(name):
                observed = self.engines[name]
                self.engines[name] = replace(observed, engine=replace(observed.engine, phase=EnginePhase.STOPPING))
            case FallAsleep():
                self.desired = replace(self.desired, run_state=RunState.ASLEEP_IDLE)
            case Forget():
                self.forgotten = True
            case Locate():
                assert not self.model_here
                self.model_here = self.random.random() < 0.3

    def wake(self) -> None:
        """Let a request wake the server."""
        if self.desired.run_state is not RunState.AWAKE:
            self.desired = replace(self.desired, run_state=RunState.AWAKE)
            self.restart_histories.clear()
            self.served = any(observed.ready for observed in self.engines.values())
        self.last_activity = self.now

    def _happen(self, calm: bool) -> None:
        self.model_here = self.model_here and (calm or self.random.random() < 0.9)
        self.memory_is_free = calm or self.random.random() < 0.7
        if self.random.random() < 0.7:
            self.acknowledged = self.sent
        for name, observed in list(self.engines.items()):
            phase = observed.engine.phase
            if phase is EnginePhase.STOPPING and self.random.random() < 0.5:
                del self.engines[name]
                continue
            if phase is EnginePhase.STARTING and self.random.random() < 0.5:
                observed = replace(
                    observed, engine=replace(observed.engine, phase=EnginePhase.READY, ready_since=self.now)
                )
            elif not calm and self.random.random() < 0.05:
                failed = after_exit(
                    self.restart_histories.get(observed.engine.replica, RestartHistory()),
                    EngineExit("X", "", requested=False),
                    None,
                    self.now,
                )
                self.restart_histories[observed.engine.replica] = failed
                del self.engines[name]
                continue
            self.served = self.served or observed.engine.phase is EnginePhase.READY
            observed = replace(observed, engine=replace(observed.engine, liveness=self._liveness(observed, calm)))
            self.engines[name] = replace(
                observed,
                published=name in self.acknowledged,
                withdrawn=name not in self.sent and name not in self.acknowledged,
                busy=self.random.choice([True, False, None]) if observed.draining_since is not None else None,
            )

    def _liveness(self, observed: ObservedEngine, calm: bool) -> Liveness:
        """Return a random liveness. A lost engine stays lost."""
        if observed.engine.liveness is Liveness.LOST or (not calm and self.random.random() < 0.02):
            return Liveness.LOST
        return Liveness.SUSPECT if not calm and self.random.random() < 0.1 else Liveness.ALIVE

    def settled(self) -> bool:
        """Whether the observed state is the desired one."""
        current = [
            observed
            for observed in self.engines.values()
            if self.desired.engine_count and observed.ready and observed.published
        ]
        return len(self.engines) == self.desired.engine_count == len(current) and all(
            observed.engine.spec_hash == self.desired.spec_hash for observed in current
        )


@pytest.mark.parametrize("seed", range(300))
def test_every_state_converges_to_the_declared_one(seed: int) -> None:
    chance = random.Random(seed)
    world = World(chance, Desired(chance.randint(1, 4), "h0", grace=GRACE, idle_sleep=chance.choice([0.0, 1.0, 3.0])))
    world.model_here = chance.random() < 0.5
    for change in range(chance.randint(1, 6)):
        changed = chance.choice(
            [
                replace(world.desired, replicas=chance.randint(1, 4)),
                replace(world.desired, spec_hash=f"h{change}"),
                replace(world.desired, run_state=chance.choice([RunState.ASLEEP_IDLE, RunState.ASLEEP_REQUESTED])),
                None,
            ]
        )
        if changed is None:
            world.wake()
        else:
            world.desired = changed
        for _ in range(chance.randint(0, 12)):
            world.step(calm=False)
    world.desired = replace(world.desired, removing=chance.random() < 0.2)
    for _ in range(400):
        if world.settled() if world.desired.engine_count else not world.engines:
            break
        world.step(calm=True)
    else:
        raise AssertionError(f"not settled: {world}")
    final = world.step(calm=True)
    assert [action for action in final.actions if not isinstance(action, Forget)] == []
    assert world.forgotten is world.desired.removing


def test_time_alone_changes_nothing_if_no_action_is_pending() -> None:
    assert decide(ONE, ready("a")).requeue_after == math.inf
