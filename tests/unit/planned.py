"""Observed engines in every condition, for tests of the planner."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from controller.actions import Decision
from controller.declared import RunState
from controller.observed import Desired, ObservedEngine, ObservedState
from controller.plan import plan
from controller.runtimes import Engine, EnginePhase, Liveness

NEW, OLD = "new", "old"
NOW = 1000.0
GRACE = 20.0


def engine(
    instance: str, replica: int = 0, phase: EnginePhase = EnginePhase.READY, spec_hash: str = NEW, **more: Any
) -> Engine:
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=more.pop("age", 0))
    ready_since = 0.0 if phase is EnginePhase.READY else None
    return Engine(instance, "s", replica, spec_hash, phase, f"/{instance}.sock", "1", started, ready_since, **more)


def ready(instance: str, replica: int = 0, spec_hash: str = NEW, **more: Any) -> ObservedEngine:
    return ObservedEngine(engine(instance, replica, spec_hash=spec_hash), published=more.pop("published", True), **more)


def doubted(instance: str, liveness: Liveness, replica: int = 0, spec_hash: str = NEW, **more: Any) -> ObservedEngine:
    return ObservedEngine(engine(instance, replica, spec_hash=spec_hash, liveness=liveness), published=True, **more)


def starting(instance: str, replica: int = 0, spec_hash: str = NEW) -> ObservedEngine:
    return ObservedEngine(engine(instance, replica, EnginePhase.STARTING, spec_hash))


def stopping(instance: str, replica: int = 0, spec_hash: str = NEW) -> ObservedEngine:
    return ObservedEngine(engine(instance, replica, EnginePhase.STOPPING, spec_hash), withdrawn=True)


def draining(instance: str, replica: int = 0, spec_hash: str = NEW, since: float = NOW, **more: Any) -> ObservedEngine:
    return ObservedEngine(engine(instance, replica, spec_hash=spec_hash), draining_since=since, **more)


def decide(desired: Desired, *engines: ObservedEngine, **more: Any) -> Decision:
    return plan(desired, ObservedState(engines, more.pop("now", NOW), **more))


ONE, TWO = Desired(1, NEW, grace=GRACE), Desired(2, NEW, grace=GRACE)
ASKED = replace(ONE, run_state=RunState.ASLEEP_REQUESTED)
IDLE = replace(ONE, run_state=RunState.ASLEEP_IDLE)
GOING = replace(ONE, removing=True)
