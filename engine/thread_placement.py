"""Decides where an engine's threads run and whether they spin while other processes need the cores too.

Spinning threads are fastest on an idle machine and nearly stop on a busy one; sleeping threads halve the speed of answers on an idle
machine. So the threads spin, spread over all cores, until other processes use a considerable part of a core. Then they sleep while they
wait, packed on half of the cores: this leaves the other cores to other processes, at the speed of half as many threads. The decision uses
the kernel's count of how long runnable threads waited for a core.

Invariant: this module only decides; engine/thread_yielding.py reads the counters and moves the threads.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from llamesh.cores import Cores

ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "300000"}
"""libgomp's own spin count (about 10 ms); libgomp does not spin while it has more threads than processors: see `IdleTeam`. The variables
are set unless the user sets either of them; then the threads stay as they are."""

SPREAD_SECONDS = 0.05
"""Seconds between two checks of a computing engine whose threads are spread."""
PACKED_SECONDS = 0.25
"""Seconds between two checks of a computing engine whose threads are packed: the kernel's processor counters have steps of 10 ms."""
MAX_SPREAD_WAITING = 0.4
"""Maximum share of the time for which spread threads wait for a core; beyond it they are packed. Packed threads lose half, or less if there
are only two."""
MAX_WAITING = 0.25
"""Threads are spread if they would wait for at most this share of the time."""
MAX_CALM_SECONDS = 2.0
"""Longest calm time before threads are spread again that had to be packed soon after each of the last spreads."""
_SOON_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class CoreUsage:
    """Use of the cores since the last check, in seconds."""

    seconds: float
    ran: float
    """Time for which all computing threads ran on a core."""
    waited: float
    """Time for which all computing threads were runnable but had no core."""
    busy: Mapping[int, float]
    """Time for which each processor was used by any process, without processes of low priority (nice)."""


@dataclass(slots=True)
class ThreadPlacement:
    """Decides where the threads run: `packed` has their processors, or is None while they are spread over all."""

    cores: Cores
    threads: int
    chance: random.Random
    packed: frozenset[int] | None = None
    _calm: float = field(default=0.0, init=False)
    _needed: float = field(default=PACKED_SECONDS, init=False)
    _since: float = field(default=_SOON_SECONDS, init=False)

    def update(self, usage: CoreUsage) -> None:
        """Update the placement from the observed use."""
        self._since += usage.seconds
        if self.packed is None:
            if usage.waited > MAX_SPREAD_WAITING * usage.seconds:
                # Packed again soon after spreading: the load changes faster than the reaction, so wait longer next time.
                self._needed = (
                    min(2 * self._needed, MAX_CALM_SECONDS) if self._since < _SOON_SECONDS else PACKED_SECONDS
                )
                self._calm, self._since = 0.0, 0.0
                self.packed = self._quietest({}, usage)
            return
        others = self._others(usage)
        spare = self.cores.processors - self.threads
        self._calm = self._calm + usage.seconds if sum(others.values()) - spare < MAX_WAITING else 0.0
        if self._calm >= self._needed:
            self.packed, self._since = None, 0.0
        elif self._better(others) and self.chance.random() < 0.5:
            # Move at random, or two engines on the same cores would both move to the same place.
            self.packed = self._quietest(others, None)

    def _others(self, usage: CoreUsage) -> dict[int, float]:
        """Return the share of each processor that other processes use, if this engine's threads use the packed ones evenly."""
        assert self.packed is not None
        own = usage.ran / len(self.packed)
        return {
            each: max(0.0, busy - (own if each in self.packed else 0.0)) / usage.seconds
            for each, busy in usage.busy.items()
        }

    def _better(self, others: Mapping[int, float]) -> bool:
        """Return whether other cores are free enough to make a move worthwhile."""
        assert self.packed is not None
        here = sum(others.get(each, 0.0) for each in self.packed)
        there = sum(others.get(each, 0.0) for each in self._quietest(others, None))
        return here - there > MAX_WAITING * len(self.packed)

    def _quietest(self, others: Mapping[int, float], usage: CoreUsage | None) -> frozenset[int]:
        """Return half of the physical cores that the threads need: the least used ones, chosen at random among equals."""
        load = others if usage is None else {each: busy / usage.seconds for each, busy in usage.busy.items()}
        groups = self.chance.sample(self.cores.groups, len(self.cores.groups))
        groups.sort(key=lambda group: round(sum(load.get(each, 0.0) for each in group), 1))
        return frozenset(each for group in groups[: max(1, self.threads // 2)] for each in group)
