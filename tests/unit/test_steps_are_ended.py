"""The program of a step is ended if it takes too long, or says nothing for too long."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
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


_SERVICE = """
import asyncio, pathlib, sys
from llamesh.kit.config import Settings
from services.quant.step_process import StepProcess
from services.quant.workspace import JobSpec, Workspace
home = pathlib.Path(sys.argv[1])
Workspace(home, "job_1").prepare(JobSpec("job_1", "m", "m", "", False, False, False, 0))
asyncio.run(StepProcess(Settings(home=home), "verify", "job_1", "Q8_0").run(lambda done, total: None))
"""


def _step_of(service: subprocess.Popen[bytes]) -> psutil.Process:
    """Return the step that a service has just started, as soon as it is the program of the step."""
    while True:
        for child in psutil.Process(service.pid).children():
            if "services.quant.step" in child.cmdline() and "tether.py" not in " ".join(child.cmdline()):
                return child
        time.sleep(0.001)


@pytest.mark.skipif(sys.platform != "linux", reason="only the kernel of Linux ties a process to its parent")
def test_a_step_that_was_stopped_before_its_lock_ends_with_its_service(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _SERVICE, str(tmp_path)]) as service:
        step = _step_of(service)
        step.suspend()
        service.kill()
        service.wait()
    psutil.wait_procs([step], timeout=30)
    assert not step.is_running() or step.status() == psutil.STATUS_ZOMBIE
