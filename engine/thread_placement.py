"""Decides where an engine's threads run and whether they spin while other processes need the cores too.

Spinning threads are fastest on an idle machine and nearly stop on a busy one; sleeping threads halve the speed of answers
on an idle machine. So the threads spin, spread over all cores, until other processes use a good part of a core. Then they sleep while
they wait, packed on half of the cores: this leaves the rest to other processes at the speed of half as many threads. The decision uses
the kernel's count of how long runnable threads waited for a core.

Invariant: this module only decides; engine/thread_yielding.py reads the counters and moves the threads.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from llamesh.cores import Cores

ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "300000"}
"""libgomp's own spin count (some 10 ms), and none at all while it has more threads than processors: see `Crowd` there. It is set unless the
user sets either; then the threads stay as they are."""

SPREAD_SECONDS = 0.05
"""Between two looks at an engine that computes, its threads spread."""
PACKED_SECONDS = 0.25
"""The same with its threads packed: long enough for the kernel's counters of processors, which step by 10 ms."""
LOST = 0.4
"""Threads are packed if they wait for a core this share of the time: packed they lose half, and less if there are only two."""
CALM = 0.25
"""Threads are spread if they would wait no more than this share of the time."""
LONGEST_CALM_SECONDS = 2.0
"""How long it must be calm before threads are spread that had to be packed soon after the last times."""
_SOON_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class CoreUsage:
    """Use of the cores since the last check, in seconds."""

    seconds: float
    ran: float
    """Of all threads that compute: on a core."""
    waited: float
    """Of all threads that compute: able to run and without a core."""
    busy: Mapping[int, float]
    """Of each processor: used by anyone at all, except by those who give way by themselves (nice)."""


@dataclass(slots=True)
class ThreadPlacement:
    """Decides where the threads run: `packed` holds their processors, or None while they are spread over all."""

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
            if usage.waited > LOST * usage.seconds:
                # Packed again soon after spreading: the load changes faster than the reaction, so wait longer next time.
                self._needed = (
                    min(2 * self._needed, LONGEST_CALM_SECONDS) if self._since < _SOON_SECONDS else PACKED_SECONDS
                )
                self._calm, self._since = 0.0, 0.0
                self.packed = self._quietest({}, usage)
            return
        others = self._others(usage)
        spare = self.cores.processors - self.threads
        self._calm = self._calm + usage.seconds if sum(others.values()) - spare < CALM else 0.0
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
        """Whether other cores are free enough to make a move worthwhile."""
        assert self.packed is not None
        here = sum(others.get(each, 0.0) for each in self.packed)
        there = sum(others.get(each, 0.0) for each in self._quietest(others, None))
        return here - there > CALM * len(self.packed)

    def _quietest(self, others: Mapping[int, float], usage: CoreUsage | None) -> frozenset[int]:
        """Return half of the physical cores that the threads need: the least used ones, at random among equals."""
        load = others if usage is None else {each: busy / usage.seconds for each, busy in usage.busy.items()}
        groups = self.chance.sample(self.cores.groups, len(self.cores.groups))
        groups.sort(key=lambda group: round(sum(load.get(each, 0.0) for each in group), 1))
        return frozenset(each for group in groups[: max(1, self.threads // 2)] for each in group)
