"""Probe results decide whether an engine is alive, suspect or hung. Legitimate work never looks hung."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from controller.runtimes import Liveness
from controller.runtimes.liveness import (
    ENDED_PATIENCE,
    HALTED_PATIENCE,
    IDLE_PATIENCE,
    LOADING_PATIENCE,
    SLACK,
    ProbeHistory,
    ProbeResult,
    assess,
    assess_loading,
    patience,
    with_probe,
)

STALL = 300.0
STEP = 2.0
ALIVE, SUSPECT, LOST, STUCK = Liveness.ALIVE, Liveness.SUSPECT, Liveness.LOST, Liveness.STUCK

ANSWER = ProbeResult(STEP, answered=True)
SILENT = ProbeResult(STEP, answered=False)
STOPPED = ProbeResult(STEP, answered=False, idle=True)
GONE = ProbeResult(STEP, answered=False, idle=True, ended=True)
REFUSED = ProbeResult(0.0, answered=False, unreachable=True)
HALTED = ProbeResult(STEP, answered=True, halted=True)
HALTED_AT_WORK = ProbeResult(STEP, answered=True, waiting=True, work=7.0, halted=True)
WAITING = ProbeResult(STEP, answered=True, waiting=True, work=7.0)
WAITING_IDLE = ProbeResult(STEP, answered=True, waiting=True, work=7.0, idle=True)


def fold(*sights: ProbeResult, start: ProbeHistory | None = None, stall: float = STALL) -> ProbeHistory:
    probes = start or ProbeHistory()
    for result in sights:
        probes = with_probe(probes, result, stall)
    return probes


CASES: dict[str, tuple[list[ProbeResult], Liveness]] = {
    "not asked yet": ([], ALIVE),
    "it answers": ([ANSWER] * 3, ALIVE),
    "one silent probe is no more than a busy moment": ([ANSWER, SILENT], ALIVE),
    "the second silent probe makes it suspect": ([ANSWER, SILENT, SILENT], SUSPECT),
    "so does it for one that is stopped": ([ANSWER, SILENT, STOPPED], SUSPECT),
    "an answer clears it at once": ([ANSWER, SILENT, SILENT, ANSWER], ALIVE),
    "stopped: ended early": ([ANSWER] + [STOPPED] * int(IDLE_PATIENCE / STEP), STUCK),
    "stopped, a moment before": ([ANSWER] + [STOPPED] * (int(IDLE_PATIENCE / STEP) - 1), SUSPECT),
    "it works: not ended as early": ([ANSWER] + [SILENT] * int(IDLE_PATIENCE / STEP), SUSPECT),
    "it works for too long": ([ANSWER] + [SILENT] * int(STALL / STEP), STUCK),
    "it works, a moment before": ([ANSWER] + [SILENT] * (int(STALL / STEP) - 1), SUSPECT),
    "a little processor time now and then is work": (
        [ANSWER] + ([STOPPED] * 7 + [SILENT]) * 4,
        SUSPECT,
    ),
    "suspect stays suspect until it answers": ([ANSWER, SILENT, STOPPED, SILENT], SUSPECT),
    "it answers, but a request makes no progress": ([ANSWER, WAITING] + [WAITING] * int(STALL / STEP), STUCK),
    "no progress for half of the patience": ([ANSWER, WAITING] + [WAITING] * int(STALL / STEP / 2), SUSPECT),
    "no progress for a batch": ([ANSWER, WAITING] + [WAITING] * 10, ALIVE),
    "no progress and no processor time": ([ANSWER, WAITING] + [WAITING_IDLE] * int(IDLE_PATIENCE / STEP), STUCK),
    "nothing waits, so no progress is no wonder": ([ANSWER] * int(2 * STALL / STEP), ALIVE),
    "its llama.cpp is gone": ([ANSWER, GONE], ALIVE),
    "its llama.cpp is gone, and nobody says so": ([ANSWER] + [GONE] * math.ceil(ENDED_PATIENCE / STEP), STUCK),
    "its llama.cpp was not seen for a moment": ([ANSWER, GONE, GONE, SILENT, GONE], SUSPECT),
    "its supervising process is stopped": ([ANSWER] + [HALTED] * math.ceil(HALTED_PATIENCE / STEP), LOST),
    "so it is while a request is worked on": (
        [ANSWER] + [HALTED, HALTED_AT_WORK] * math.ceil(HALTED_PATIENCE / 2 / STEP),
        LOST,
    ),
    "stopped for a moment": ([ANSWER] + [HALTED] * (math.ceil(HALTED_PATIENCE / STEP) - 1), ALIVE),
    "it goes on": ([ANSWER] + [HALTED] * math.ceil(HALTED_PATIENCE / STEP) + [ANSWER], ALIVE),
    "stopped with its llama.cpp: as a stopped engine": (
        [ANSWER] + [replace(STOPPED, halted=True)] * int(IDLE_PATIENCE / STEP),
        STUCK,
    ),
    "its socket refuses": ([ANSWER, REFUSED], SUSPECT),
    "its socket refuses again": ([ANSWER, REFUSED, REFUSED], LOST),
    "its socket is back": ([ANSWER, REFUSED, REFUSED, ANSWER], ALIVE),
}


@pytest.mark.parametrize("name", CASES)
def test_probes_are_assessed_as_one_liveness(name: str) -> None:
    sights, liveness = CASES[name]
    assessment = assess(fold(*sights), STALL)
    assert assessment.liveness is liveness
    assert bool(assessment.message) is (liveness is not ALIVE)


def test_a_suspended_machine_makes_no_engine_hung() -> None:
    night = 8 * 3600.0
    probes = fold(ANSWER, ProbeResult(night, answered=False), ProbeResult(night, answered=False, idle=True))
    assert assess(probes, STALL).liveness is SUSPECT
    assert assess(fold(ANSWER, start=probes), STALL).liveness is ALIVE


@pytest.mark.parametrize(
    ("batch_seconds", "longest", "expected"),
    [
        (None, 0.0, STALL),  # its speed is not known: the setting
        (0.2, 0.0, 60.0),  # fast: a minute
        (5.0, 0.0, 150.0),  # 30 batches
        (20.0, 0.0, STALL),  # the setting is the bound
        (200.0, 0.0, SLACK * 200.0),  # but never less than a few batches
        (None, 150.0, SLACK * 150.0),  # nor than a few of the pauses that it came back from
    ],
)
def test_patience_follows_the_speed_that_the_engine_has_shown(
    batch_seconds: float | None, longest: float, expected: float
) -> None:
    assert patience(ProbeHistory(batch_seconds=batch_seconds, longest=longest), STALL) == expected


def test_a_slow_machine_that_progresses_batch_by_batch_is_never_ended() -> None:
    """Each batch takes longer than the one before, as with a growing context, from well below the setting to ten times it."""
    probes, seconds, work = fold(ANSWER), 0.6 * STALL, 0.0
    while seconds < 10 * STALL:
        for _ in range(int(seconds / STEP)):
            probes = fold(SILENT, start=probes)
            assert assess(probes, STALL).liveness in (ALIVE, SUSPECT)
        work += 512
        probes = fold(ProbeResult(STEP, answered=True, waiting=True, work=work), start=probes)
        assert assess(probes, STALL).liveness is ALIVE
        seconds *= 1.2


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_suspicion_does_not_flap_under_legitimate_load(seed: int, idle: bool) -> None:
    """Hundreds of pauses of random lengths: the engine is suspected a few times, not in each pause."""
    chance = random.Random(seed)
    longest = 0.8 * (IDLE_PATIENCE if idle else STALL)
    probes, suspicions = fold(ANSWER), 0
    for pause in (chance.uniform(STEP, longest) for _ in range(300)):
        was = ALIVE
        for _ in range(int(pause / STEP)):
            probes = fold(STOPPED if idle else SILENT, start=probes)
            now = assess(probes, STALL).liveness
            assert now in (ALIVE, SUSPECT)
            suspicions += now is SUSPECT and was is ALIVE
            was = now
        probes = fold(ANSWER, start=probes)
    assert 1 <= suspicions <= math.log2(longest / STEP) + 1


def test_the_words_stay_the_same_while_the_judgement_does() -> None:
    probes, seen = fold(ANSWER), set()
    for _ in range(100):
        probes = fold(SILENT, start=probes)
        seen.add(assess(probes, STALL))
    assert len(seen) == 2


def test_the_message_says_how_long_and_names_the_remedy() -> None:
    stuck = assess(fold(ANSWER, *[SILENT] * 150), STALL)
    assert "no progress for 300 s" in stuck.message
    assert "LLAMESH_ENGINE_STALL_SECONDS" in stuck.message
    assert "--batch-size" in stuck.message
    assert "used no processor time for 30 s" in assess(fold(ANSWER, *[STOPPED] * 15), STALL).message


def test_an_engine_may_load_for_ever_as_long_as_it_is_at_work() -> None:
    assert assess_loading(fold(*[SILENT] * 10_000)).liveness is ALIVE
    hung = assess_loading(fold(*[STOPPED] * int(LOADING_PATIENCE / STEP)))
    assert hung.liveness is STUCK
    assert "did not become ready" in hung.message
