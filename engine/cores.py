"""Chooses the number of threads of an engine for answers and for prompts.

llama.cpp divides each step of a model among its threads, and all of them wait for the slowest. They spin while they wait, because sleeping
and waking takes longer than most steps. If another process uses one core, all threads lose that time (docs/adr/0020-threads-of-engines.md
has the figures). Invariant: never more threads than physical cores, and never more than a container's limit allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamesh.cores import Cores


@dataclass(frozen=True, slots=True)
class Threads:
    """Numbers of threads of one engine."""

    answers: int
    prompts: int


def threads(cores: Cores, *, yields: bool) -> Threads:
    """Return the default threads. `yields`: the engine yields cores to other processes (engine/thread_placement.py).

    An engine that yields uses all physical cores for both. Otherwise answers use half of the cores: a step of an answer is too short to
    wait for a thread that does not run, while a step of a prompt is long enough to be divided again.
    """
    most = max(1, math.floor(min(len(cores.groups), cores.limit)))
    return Threads(answers=most if yields else max(1, most // 2), prompts=most)
