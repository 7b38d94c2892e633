"""A step of a job runs in one program at a time: a later one ends an earlier one, even one that was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llamesh import locks
from services.quant.step.step_lock import take_lock
from services.quant.workspace import Workspace

_STEP = """
import subprocess, sys
from pathlib import Path
from services.quant.step.step_lock import take_lock
take_lock(Path(sys.argv[1]))
program = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
print(program.pid, flush=True)
program.wait()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    workspace = Workspace(tmp_path, "job_1")
    workspace.folder.mkdir(parents=True)
    return workspace.lock("quantize", "Q8_0")


@pytest.fixture
def earlier(path: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A step that holds the lock, and the program that it runs."""
    step = subprocess.Popen(
        [sys.executable, "-c", _STEP, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert step.stdout is not None
    try:
        yield step, psutil.Process(int(step.stdout.readline()))
    finally:
        if step.poll() is None:
            os.killpg(step.pid, signal.SIGKILL)
        step.wait()
        step.stdout.close()


def test_a_stopped_step_is_killed_with_its_program(
    path: Path, earlier: tuple[subprocess.Popen[str], psutil.Process]
) -> None:
    step, program = earlier
    os.killpg(step.pid, signal.SIGSTOP)
    descriptor = take_lock(path)
    try:
        assert step.wait(60) == -signal.SIGKILL
        psutil.wait_procs([program], timeout=60)
        assert not program.is_running() or program.status() == psutil.STATUS_ZOMBIE
        assert locks.read_holder(descriptor)["pid"] == os.getpid()
    finally:
        os.close(descriptor)


def test_steps_of_other_types_do_not_disturb_each_other(
    path: Path, earlier: tuple[subprocess.Popen[str], psutil.Process]
) -> None:
    """On a cluster they run at the same time in one folder."""
    os.close(take_lock(path.with_name("quantize-Q4_0.lock")))
    assert earlier[0].poll() is None
