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

from controller.backoff import History
from controller.declared import Rest
from controller.runtimes import Engine, Liveness, Phase
from controller.starts import NoRoom, WaitsForOthers

PATIENCE = 600.0
"""Seconds that an engine which nobody waits for may take to become idle."""
IDLE_POLL_SECONDS = 0.1
"""How often a draining engine is looked at."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of one server."""

    replicas: int
    spec_hash: str
    rest: Rest = Rest.AWAKE
    removing: bool = False
    idle_sleep: float = 0.0
    """Seconds; 0: never."""
    grace: float = 20.0
    """Seconds that running requests get where someone waits for the end."""

    @property
    def wanted(self) -> int:
        """Engines that are to run now."""
        return 0 if self.removing or self.rest is not Rest.AWAKE else self.replicas


@dataclass(frozen=True, slots=True)
class Seen:
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
        return self.engine.phase is Phase.READY and self.engine.liveness is Liveness.ALIVE

    @property
    def lost(self) -> bool:
        """It can get no requests any more."""
        return self.engine.phase is Phase.READY and self.engine.liveness is Liveness.LOST


@dataclass(frozen=True, slots=True)
class Situation:
    """What is seen of one server."""

    engines: Sequence[Seen]
    now: float
    histories: Mapping[int, History] = field(default_factory=dict)
    model_available: bool = True
    last_activity: float = 0.0
    """When it last had a request or woke."""
    envoy: bool = True
    """Whether an Envoy acknowledges what it is sent."""
    routable: bool = False
    """Whether Envoy routes requests by the server's present name."""
    no_room_beside: frozenset[int] = frozenset()
    """Replicas whose old engine must go before there is room for the new one."""
    waiting: Mapping[int, WaitsForOthers | NoRoom] = field(default_factory=dict)
    """Replicas whose start is wanted and may not be yet."""

    def history(self, replica: int) -> History:
        """What happened to a replica."""
        return self.histories.get(replica, History())

    def serves(self, seen: Seen | None) -> bool:
        """Whether requests reach this engine (or would, if an Envoy were there)."""
        return seen is not None and seen.ready and (seen.published or not self.envoy)


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
    look_again: float = math.inf
    """Seconds after which time alone may change the plan."""


def plan(wish: Wish, situation: Situation) -> Decision:
    """Decide for one server."""
    return _Plan(wish, situation).decide()


class _Plan:
    def __init__(self, wish: Wish, situation: Situation) -> None:
        self._wish = wish
        self._now = situation
        self._actions: list[Action] = []
        self._look_again = math.inf
        self._live = [seen for seen in situation.engines if seen.engine.phase in (Phase.STARTING, Phase.READY)]
        self._current = _one_each(
            seen
            for seen in self._live
            if seen.engine.spec_hash == wish.spec_hash and seen.engine.replica < wish.wanted and not seen.lost
        )
        self._bridges = _one_each(
            seen
            for seen in self._live
            if seen.engine.spec_hash != wish.spec_hash
            and seen.engine.phase is Phase.READY
            and not seen.lost
            and seen.engine.replica < wish.wanted
            and seen.engine.replica not in situation.no_room_beside
            and not situation.serves(self._current.get(seen.engine.replica))
        )

    def decide(self) -> Decision:
        kept = [*self._current.values(), *self._bridges.values()]
        for seen in kept:
            if seen.draining_since is not None:
                self._actions.append(Resume(seen.engine.instance))
        names = {seen.engine.instance for seen in kept}
        for seen in self._live:
            if seen.engine.instance not in names:
                self._retire(seen)
        self._start_missing()
        self._fall_asleep()
        if self._wish.removing and not self._now.engines:
            self._actions.append(Forget())
        ready = sorted((seen for seen in kept if seen.answers), key=_place)
        return Decision(tuple(self._actions), tuple(seen.engine.instance for seen in ready), self._look_again)

    def _retire(self, seen: Seen) -> None:
        """Rule 2. An engine that never was ready has no requests and ends at once."""
        instance = seen.engine.instance
        if seen.engine.phase is Phase.STARTING:
            self._actions.append(Stop(instance, 0.0))
        elif seen.draining_since is None:
            self._actions.append(Drain(instance))
        elif seen.withdrawn:
            waited_for = self._wish.removing or self._wish.rest is Rest.ASKED
            # The engine itself waits for its requests as long as the grace is; beyond that it is asked first.
            patience = 0.0 if waited_for else PATIENCE
            left = seen.draining_since + patience - self._now.now
            if left <= 0 or seen.busy is False:
                self._actions.append(Stop(instance, self._wish.grace))
            else:
                self._again_in(min(left, IDLE_POLL_SECONDS))

    def _start_missing(self) -> None:
        """Rules 3 and 4."""
        surge_is_free = not any(
            replica in self._current and not self._now.serves(self._current[replica]) for replica in self._bridges
        )
        for replica in range(self._wish.wanted):
            if replica in self._current:
                continue
            if replica in self._bridges:
                if not surge_is_free:
                    continue
                surge_is_free = False
            pause = self._now.history(replica).not_before - self._now.now
            if pause > 0:
                self._again_in(pause)
            elif self._now.model_available:
                self._actions.append(Start(replica))
            elif Locate() not in self._actions:
                self._actions.append(Locate())

    def _fall_asleep(self) -> None:
        """Rule 7."""
        if not self._wish.wanted or not self._wish.idle_sleep:
            return
        if self._bridges or any(seen.engine.phase is Phase.STARTING for seen in self._live):
            return
        if any(seen.busy for seen in self._live):
            # Idle from now on at the earliest, and no event tells of it.
            self._again_in(self._wish.idle_sleep)
            return
        # A request that waited for the engine comes just after it was ready.
        latest = max(self._now.last_activity, *(seen.engine.ready_since or 0.0 for seen in self._live), 0.0)
        left = latest + self._wish.idle_sleep - self._now.now
        if left > 0:
            self._again_in(left)
        else:
            self._actions.append(FallAsleep())

    def _again_in(self, seconds: float) -> None:
        self._look_again = min(self._look_again, seconds)


def _one_each(engines: Iterable[Seen]) -> dict[int, Seen]:
    """The best engine of each replica: one that answers before one that does not, then one that does not drain, then the oldest."""
    best: dict[int, Seen] = {}
    for seen in engines:
        replica = seen.engine.replica
        if replica not in best or _rank(seen) < _rank(best[replica]):
            best[replica] = seen
    return best


def _rank(seen: Seen) -> tuple[bool, bool, bool, float, str]:
    engine = seen.engine
    return (
        not seen.answers,
        engine.phase is not Phase.READY,
        seen.draining_since is not None,
        engine.start_time.timestamp(),
        engine.instance,
    )


def _place(seen: Seen) -> tuple[int, str]:
    return seen.engine.replica, seen.engine.instance
