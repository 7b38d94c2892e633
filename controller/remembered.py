"""What is remembered of one server between two looks, and the situation that a look sees in its light.

Invariant: all of it can be lost without harm; the next looks learn it again. Nothing here acts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from controller.backoff import STEADY_SECONDS, History, after_exit, after_ready, after_steady
from controller.declared import Declared, Rest
from controller.plan import Seen, Situation
from controller.publication import Publication
from controller.runtimes import Engine, Load, Phase
from controller.starts import NoRoom, WaitsForOthers


@dataclass(slots=True)
class Remembered:
    """One server. Moments are those of the reconciler's clock, in seconds."""

    publication: Publication
    last_activity: float = 0.0
    spec_hash: str = ""
    histories: dict[int, History] = field(default_factory=dict)
    """How each replica has fared with the present spec."""
    draining: dict[str, float] = field(default_factory=dict)
    """Engines that are to take no more requests, and since when."""
    loads: dict[str, Load | None] = field(default_factory=dict)
    waiting: dict[int, WaitsForOthers | NoRoom] = field(default_factory=dict)
    """Replicas that may not start yet, as of the last look."""
    no_room_beside: set[int] = field(default_factory=set)
    """Replicas whose old engine must end before the new one has room."""
    generation: int = 0
    """That of the spec at the last look."""
    looked: tuple[int, Rest, bool] | None = None
    """What was wanted at the last look: see `wishes`."""

    def take_in(self, spec_hash: str, engines: Sequence[Engine], now: float) -> list[str]:
        """Learn what has ended and what has proved itself since the last look. The engines that have ended are returned."""
        if self.spec_hash != spec_hash:
            self.spec_hash = spec_hash
            self.histories.clear()
            self.no_room_beside.clear()
        ended = []
        for engine in engines:
            history = self.histories.get(engine.replica, History())
            ready_for = None if engine.ready_since is None else now - engine.ready_since
            if engine.exit is not None:
                if engine.spec_hash == spec_hash:
                    self.histories[engine.replica] = after_exit(history, engine.exit, ready_for, now)
                self.draining.pop(engine.instance, None)
                self.loads.pop(engine.instance, None)
                ended.append(engine.instance)
            elif history.failures and ready_for is not None:
                self.histories[engine.replica] = (after_steady if ready_for >= STEADY_SECONDS else after_ready)(history)
        return ended

    def note_load(self, instance: str, load: Load | None, now: float) -> None:
        """Take in how busy an engine is; more work done since the last time is activity."""
        if instance in self.draining:
            return  # The reconciler asks it itself, at a moment of its choice.
        before = self.loads.get(instance)
        self.loads[instance] = load
        if load is None or load.busy or before is None or load.work_done != before.work_done:
            self.last_activity = now

    def make_room(self, engines: Sequence[Engine]) -> None:
        """Let one more old engine go before its replacement starts: with it there is no room. One at a time: they may be enough."""
        old = [engine for engine in engines if engine.spec_hash != self.spec_hash and engine.phase is not Phase.ENDED]
        leaving = any(engine.phase is Phase.STOPPING or engine.instance in self.draining for engine in old)
        replicas = {engine.replica for engine in old} - self.no_room_beside
        if replicas and not leaving:
            self.no_room_beside.add(min(replicas))

    def situation(
        self,
        spec_hash: str,
        engines: Sequence[Engine],
        now: float,
        model_available: bool,
        model_names: Sequence[str] = (),
    ) -> Situation:
        """How it stands with the server now, in the light of its present spec."""
        return Situation(
            engines=[self._seen(engine) for engine in engines],
            now=now,
            histories=self.histories if self.spec_hash == spec_hash else {},
            model_available=model_available,
            last_activity=self.last_activity,
            envoy=self.publication.envoy,
            routable=self.publication.routes(*model_names),
            no_room_beside=frozenset(self.no_room_beside),
            waiting=self.waiting,
        )

    def steady_in(self, engines: Sequence[Engine], now: float) -> float:
        """Seconds until the next engine has proved itself after failures; infinite where none has to."""
        proving = [
            engine.ready_since + STEADY_SECONDS - now
            for engine in engines
            if engine.ready_since is not None and self.histories.get(engine.replica, History()).failures
        ]
        return max(0.0, min(proving, default=math.inf))

    def _seen(self, engine: Engine) -> Seen:
        load = self.loads.get(engine.instance)
        return Seen(
            engine,
            published=self.publication.has(engine.instance),
            withdrawn=self.publication.has_left(engine.instance),
            draining_since=self.draining.get(engine.instance),
            busy=load.busy if load else None,
        )


def wishes(declared: Declared) -> tuple[int, Rest, bool]:
    """Everything about a declared server that may change, in short."""
    return declared.generation, declared.rest, declared.removing
