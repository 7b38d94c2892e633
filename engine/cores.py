"""How many threads an engine computes with, for answers and for prompts.

llama.cpp shares each step of a model among its threads, and all wait for the slowest. They spin while they wait, because to
sleep and to wake takes longer than most steps; so where another process takes one core, all of them lose its time
(docs/adr/0020-threads-of-engines.md has the figures). Invariant: never more threads than physical cores, and none that a
container's limit would stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llamesh.cores import Cores


@dataclass(frozen=True, slots=True)
class Threads:
    """Of one engine."""

    answers: int
    prompts: int


def threads(cores: Cores, *, yields: bool) -> Threads:
    """Threads where none are asked for. `yields`: the engine gives way where others need the cores (engine/thread_placement.py).

    All physical cores then, for both. Without, answers take half of them: a step of an answer is too short to wait for a
    thread that does not run, while one of a prompt is long enough to be shared anew.
    """
    most = max(1, math.floor(min(len(cores.groups), cores.limit)))
    return Threads(answers=most if yields else max(1, most // 2), prompts=most)
