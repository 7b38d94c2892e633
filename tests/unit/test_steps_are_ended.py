"""The program of a step is ended if it takes too long, or says nothing for too long."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llamesh.kit.config import Settings
from services.quant.step_process import CRASHED, MAX_CRASH_TRIES, REFUSED, Outcome, StepProcess
from services.quant.workspace import JobSpec, Workspace

_NEVER = 600.0
"""Longer than a test lasts, in seconds."""


async def _run(
    program: Path, script: str, monkeypatch: pytest.MonkeyPatch, seconds: float, silence_seconds: float
) -> Outcome:
    """Run a step whose program is a script in place of Python."""
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    Workspace(program.parent, "job_1").prepare(JobSpec("job_1", "m", "m", "", False, False, False, 0))
    process = StepProcess(Settings(home=program.parent), "quantize", "job_1", "Q8_0")
    return await process.run(lambda _done, _total: None, seconds=seconds, silence_seconds=silence_seconds)


async def test_a_silent_program_counts_as_crashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = await _run(tmp_path / "python", "echo begun >&2; exec cat", monkeypatch, _NEVER, 0.36)
    assert (outcome.code, outcome.max_tries) == (CRASHED, MAX_CRASH_TRIES)
    assert (outcome.words(), outcome.log) == ("its program reported nothing for 0.0001 hours", "begun")


@pytest.mark.parametrize("stream", ["1", "2"])
async def test_a_program_that_reports_is_not_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """It ends by the deadline, which is longer than a silence may be."""
    script = f"while echo part >&{stream}; do sleep 0.02; done"
    outcome = await _run(tmp_path / "python", script, monkeypatch, 4.0, 2.0)
    assert outcome.code == REFUSED
    assert "it took longer than" in outcome.words()
