"""Liveness probe of an engine that was ready: decides from consecutive probe results whether it still makes progress. No I/O.

A probe requests llama.cpp's counters, which its inference loop returns. Three durations are measured; each is reset once the loop answers
and its counters change again:

- seconds without progress while the process used the processor. A long prompt batch looks the same, so this limit is long. It is longer for
  a slow engine and after pauses from which the engine recovered;
- seconds without progress in which the process used no processor time at all (stopped, or each of its threads waits for another).
  No batch looks like this, so this limit is short;
- seconds in which llama.cpp is gone but its supervising process, which should end with it, still runs. This limit is the shortest.

An engine whose supervising process is stopped (SIGSTOP) while llama.cpp answers is not killed: it counts as lost, so it finishes its
requests and is replaced.

Invariant: each probe adds a bounded step of time, so no engine seems to hang because the machine was suspended. Each pause from which an
engine recovers doubles the limit, so an engine is rarely suspected under any load.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.runtimes import Liveness

SILENT_PROBES = 2
"""Consecutive probes without an answer after which an engine is suspect."""
LOST_PROBES = 2
"""Consecutive probes without a connection after which an engine is lost."""
IDLE_PATIENCE = 30.0
"""Seconds without an answer and without processor time after which an engine counts as hung. A process whose GPU works uses some."""
ENDED_PATIENCE = 5.0
"""Seconds without llama.cpp after which its supervising process counts as hung: it reports the end of llama.cpp within milliseconds."""
HALTED_PATIENCE = 10.0
"""Seconds for which the supervising process is stopped while llama.cpp answers. Then the engine is lost: it cannot be drained."""
LOADING_PATIENCE = 120.0
"""Seconds without processor time after which a starting engine that is not ready counts as hung."""
MAX_STEP = 10.0
"""Largest number of seconds that one probe adds to a duration."""
SLACK = 3.0
"""Factor by which an engine may exceed its longest pause so far, or the expected time of a batch at its speed."""
KNOWN_BATCHES = 30.0
"""Number of batch durations without progress after which an engine of known speed counts as hung; the setting is the upper bound."""
MIN_KNOWN_SECONDS = 60.0
"""Minimum limit for an engine of known speed, in seconds."""


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Settings of the liveness probe."""

    probe_seconds: float
    """Seconds between two probes of a ready engine."""
    stall_seconds: float
    """See `patience`."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Result of one probe."""

    seconds: float
    """Seconds since the previous probe."""
    answered: bool
    unreachable: bool = False
    """No process listens at the engine's address."""
    waiting: bool = False
    """Whether a request runs or waits, according to the engine's answer."""
    work: float = 0.0
    """Work counter in the engine's answer; see `Counters.work`."""
    batch_seconds: float | None = None
    """Seconds for a full prompt batch at the engine's measured speed; None: unknown yet."""
    idle: bool = False
    """Whether the process used no processor time since the previous probe, and none of its threads runs or waits for a disk."""
    ended: bool = False
    """Whether the llama.cpp child of the engine's process has ended."""
    halted: bool = False
    """Whether the supervising process is stopped by a signal."""


@dataclass(frozen=True, slots=True)
class ProbeHistory:
    """Summary of all probes of one engine so far."""

    silent: int = 0
    """Consecutive probes without an answer."""
    unreachable: int = 0
    working: float = 0.0
    """Seconds without progress while the processor was used."""
    idle: float = 0.0
    """Consecutive seconds without progress and without processor time."""
    ended: float = 0.0
    """Consecutive seconds without llama.cpp."""
    halted: float = 0.0
    """Consecutive seconds for which the supervising process was stopped."""
    longest: float = 0.0
    """Largest value of `working` after which the engine made progress."""
    longest_idle: float = 0.0
    """Largest value of `idle` after which the engine made progress."""
    suspect: bool = False
    """Whether the engine is suspect; reset only by progress."""
    work: float | None = None
    batch_seconds: float | None = None


SILENT = ProbeHistory(silent=SILENT_PROBES, suspect=True)
"""History of an adopted engine that was ready and does not answer now."""


@dataclass(frozen=True, slots=True)
class Assessment:
    """Liveness of an engine, with the reason."""

    liveness: Liveness
    message: str = ""
    """Reason, for people. It changes only with the assessment."""


_ALIVE = Assessment(Liveness.ALIVE)


def with_probe(probes: ProbeHistory, result: ProbeResult, stall_seconds: float) -> ProbeHistory:
    """Return the history after one more probe. `stall_seconds`: see `patience`."""
    seconds = min(result.seconds, MAX_STEP)
    batch_seconds = result.batch_seconds or probes.batch_seconds
    halted = probes.halted + seconds if result.halted else 0.0
    if result.answered and not (result.waiting and result.work == probes.work):
        return ProbeHistory(
            halted=halted,
            longest=max(probes.longest, probes.working),
            longest_idle=max(probes.longest_idle, probes.idle),
            work=result.work,
            batch_seconds=batch_seconds,
        )
    seen = replace(
        probes,
        silent=0 if result.answered else probes.silent + 1,
        unreachable=probes.unreachable + 1 if result.unreachable else 0,
        working=probes.working if result.idle else probes.working + seconds,
        idle=probes.idle + seconds if result.idle else 0.0,
        ended=probes.ended + seconds if result.ended else 0.0,
        halted=halted,
        batch_seconds=batch_seconds,
    )
    return replace(seen, suspect=probes.suspect or _is_suspect(seen, stall_seconds))


def patience(probes: ProbeHistory, stall_seconds: float) -> float:
    """Return the seconds that an engine may work without progress. `stall_seconds` is the limit while its speed is unknown."""
    batch = probes.batch_seconds
    usual = stall_seconds if batch is None else min(stall_seconds, max(MIN_KNOWN_SECONDS, KNOWN_BATCHES * batch))
    return max(usual, SLACK * _expected(probes))


def assess(probes: ProbeHistory, stall_seconds: float) -> Assessment:
    """Assess an engine that was ready."""
    short, long = min(IDLE_PATIENCE, stall_seconds), patience(probes, stall_seconds)
    if probes.unreachable >= LOST_PROBES:
        return Assessment(Liveness.LOST, "its socket does not lead to it any more")
    if probes.ended >= ENDED_PATIENCE:
        return Assessment(
            Liveness.STUCK,
            f"llama.cpp ended, and its supervising process did not report it for {ENDED_PATIENCE:.0f} s",
        )
    if probes.idle >= short:
        return Assessment(
            Liveness.STUCK, f"its inference loop made no progress and used no processor time for {short:.0f} s"
        )
    if probes.working >= long:
        return Assessment(
            Liveness.STUCK,
            f"its inference loop made no progress for {long:.0f} s{_pace(probes)}. If the cause was a long prompt, "
            f"raise LLAMESH_ENGINE_STALL_SECONDS or lower --batch-size",
        )
    if probes.suspect:
        return Assessment(
            Liveness.SUSPECT,
            "its inference loop does not answer or makes no progress; new requests wait, or go to other engines, until it does. "
            f"It is ended after {short:.0f} s without processor time, or {long:.0f} s with it",
        )
    if probes.halted >= HALTED_PATIENCE:
        return Assessment(
            Liveness.LOST,
            f"the process that supervises its llama.cpp has been stopped by a signal for {HALTED_PATIENCE:.0f} s",
        )
    return _ALIVE


def assess_loading(probes: ProbeHistory) -> Assessment:
    """Assess an engine that is not ready yet. Loading may take any time."""
    if probes.idle >= LOADING_PATIENCE:
        return Assessment(
            Liveness.STUCK, f"it did not become ready and used no processor time for {LOADING_PATIENCE:.0f} s"
        )
    return _ALIVE


def _is_suspect(probes: ProbeHistory, stall_seconds: float) -> bool:
    if probes.silent >= SILENT_PROBES:
        unusual = probes.idle > 2 * probes.longest_idle or (not probes.idle and probes.working >= 2 * _expected(probes))
        return unusual or probes.working >= patience(probes, stall_seconds) / 2
    return probes.unreachable > 0 or probes.working >= patience(probes, stall_seconds) / 2


def _expected(probes: ProbeHistory) -> float:
    """Return the seconds without progress that are normal for this engine."""
    return max(probes.longest, probes.batch_seconds or 0.0)


def _pace(probes: ProbeHistory) -> str:
    return f", though a batch of prompt takes it about {probes.batch_seconds:.1f} s" if probes.batch_seconds else ""
