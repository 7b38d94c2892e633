"""Whether an engine that was ready still lives: decided from what probes saw, one after the other. Pure.

A probe asks llama.cpp for its counters, which its inference loop answers. Three things count against an engine, each only until the loop
answers and its counters move again:

- seconds without progress while the process used the processor. A long batch of prompt looks like this too, so patience is long, and
  longer still if the engine's own speed, or a pause that it came back from before, says so;
- seconds without progress in which the process used no processor time at all (stopped, or each of its threads waits for another).
  No batch looks like this, so patience is short;
- seconds in which its llama.cpp is gone and its supervising process, which would end with it, is not: patience is shorter still.

Invariant: time counts only as far as it was probed, a bounded step each time, so a machine that was suspended has hung nobody. With each
pause that an engine comes back from, the next suspicion takes twice as long: under whatever load suspicions of one engine are few.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.runtimes import Liveness

SILENT_PROBES = 2
"""So many probes in a row without an answer, and an engine is suspect."""
LOST_PROBES = 2
"""So many probes in a row that could not even connect, and an engine is lost."""
IDLE_PATIENCE = 30.0
"""Seconds without an answer and without processor time, and an engine has hung. A graphics card at work leaves some time to its process."""
ENDED_PATIENCE = 5.0
"""Seconds without llama.cpp, and the process that supervises it has hung: it needs milliseconds to say that llama.cpp ended."""
LOADING_PATIENCE = 120.0
"""Seconds without processor time in which an engine that starts does not become ready, and it has hung."""
LONGEST_STEP = 10.0
"""No probe counts for more seconds."""
SLACK = 3.0
"""An engine may take so many times as long as its longest pause so far, or as a batch should take at its speed."""
KNOWN_BATCHES = 30.0
"""Batches that an engine of known speed may miss; the setting is the upper bound."""
KNOWN_LEAST = 60.0
"""Seconds that it may take at least."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one probe saw."""

    seconds: float
    """Since the probe before."""
    answered: bool
    unreachable: bool = False
    """Nobody listens at the engine's address."""
    waiting: bool = False
    """As the answer says, a request is worked on or waits."""
    work: float = 0.0
    """As the answer says; see `Counters.work`."""
    batch_seconds: float | None = None
    """What a full batch of prompt takes at the speed that the engine has shown; None: not known yet."""
    idle: bool = False
    """Since the probe before, the process used no processor time, and none of its threads runs or waits for a disk."""
    ended: bool = False
    """There is no llama.cpp below the engine's process any more."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the probes of one engine have shown so far."""

    silent: int = 0
    """Probes in a row without an answer."""
    unreachable: int = 0
    working: float = 0.0
    """Seconds without progress, processor in use."""
    idle: float = 0.0
    """Seconds without progress and without processor time, in a row."""
    ended: float = 0.0
    """Seconds without llama.cpp, in a row."""
    longest: float = 0.0
    """The most `working` that ended in progress."""
    longest_idle: float = 0.0
    """The most `idle` that ended in progress."""
    suspect: bool = False
    """Stays until there is progress."""
    work: float | None = None
    batch_seconds: float | None = None


SILENT = Pulse(silent=SILENT_PROBES, suspect=True)
"""Of an engine that was ready before we came and does not answer now."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is to be thought of an engine."""

    liveness: Liveness
    message: str = ""
    """Why, for people. It stays the same while the judgement does."""


_ALIVE = Judgement(Liveness.ALIVE)


def after(pulse: Pulse, sight: Sight, stall_seconds: float) -> Pulse:
    """The pulse after one more probe. `stall_seconds`: see `patience`."""
    seconds = min(sight.seconds, LONGEST_STEP)
    batch_seconds = sight.batch_seconds or pulse.batch_seconds
    if sight.answered and not (sight.waiting and sight.work == pulse.work):
        return Pulse(
            longest=max(pulse.longest, pulse.working),
            longest_idle=max(pulse.longest_idle, pulse.idle),
            work=sight.work,
            batch_seconds=batch_seconds,
        )
    seen = replace(
        pulse,
        silent=0 if sight.answered else pulse.silent + 1,
        unreachable=pulse.unreachable + 1 if sight.unreachable else 0,
        working=pulse.working if sight.idle else pulse.working + seconds,
        idle=pulse.idle + seconds if sight.idle else 0.0,
        ended=pulse.ended + seconds if sight.ended else 0.0,
        batch_seconds=batch_seconds,
    )
    return replace(seen, suspect=pulse.suspect or _is_suspect(seen, stall_seconds))


def patience(pulse: Pulse, stall_seconds: float) -> float:
    """Seconds that the engine may work without progress. `stall_seconds`: the setting, for an engine whose speed is not known yet."""
    batch = pulse.batch_seconds
    usual = stall_seconds if batch is None else min(stall_seconds, max(KNOWN_LEAST, KNOWN_BATCHES * batch))
    return max(usual, SLACK * _expected(pulse))


def judge(pulse: Pulse, stall_seconds: float) -> Judgement:
    """What is to be thought of an engine that was ready."""
    short, long = min(IDLE_PATIENCE, stall_seconds), patience(pulse, stall_seconds)
    if pulse.unreachable >= LOST_PROBES:
        return Judgement(Liveness.LOST, "its socket does not lead to it any more")
    if pulse.ended >= ENDED_PATIENCE:
        return Judgement(
            Liveness.STUCK,
            f"llama.cpp ended, and the process that supervises it did not say so for {ENDED_PATIENCE:.0f} s",
        )
    if pulse.idle >= short:
        return Judgement(
            Liveness.STUCK, f"its inference loop made no progress and used no processor time for {short:.0f} s"
        )
    if pulse.working >= long:
        return Judgement(
            Liveness.STUCK,
            f"its inference loop made no progress for {long:.0f} s{_pace(pulse)}. If this was no fault but a long prompt, "
            f"raise LLAMESH_ENGINE_STALL_SECONDS or lower --batch-size",
        )
    if pulse.suspect:
        return Judgement(
            Liveness.SUSPECT,
            "its inference loop does not answer or makes no progress; new requests wait, or go to other engines, until it does. "
            f"It is ended after {short:.0f} s without processor time, or {long:.0f} s with it",
        )
    return _ALIVE


def judge_loading(pulse: Pulse) -> Judgement:
    """What is to be thought of an engine that is not ready yet: however long it loads, it is at work."""
    if pulse.idle >= LOADING_PATIENCE:
        return Judgement(
            Liveness.STUCK, f"it did not become ready and used no processor time for {LOADING_PATIENCE:.0f} s"
        )
    return _ALIVE


def _is_suspect(pulse: Pulse, stall_seconds: float) -> bool:
    if pulse.silent >= SILENT_PROBES:
        unusual = pulse.idle > 2 * pulse.longest_idle or (not pulse.idle and pulse.working >= 2 * _expected(pulse))
        return unusual or pulse.working >= patience(pulse, stall_seconds) / 2
    return pulse.unreachable > 0 or pulse.working >= patience(pulse, stall_seconds) / 2


def _expected(pulse: Pulse) -> float:
    """Seconds without progress that are nothing unusual for this engine."""
    return max(pulse.longest, pulse.batch_seconds or 0.0)


def _pace(pulse: Pulse) -> str:
    return f", though a batch of prompt takes it about {pulse.batch_seconds:.1f} s" if pulse.batch_seconds else ""
