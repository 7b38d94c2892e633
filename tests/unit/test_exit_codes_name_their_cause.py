"""An exit code is said in words whatever signal it stands for, real-time signals included."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from engine.failure import FailureReason, explain
from llamesh.processes import exit_words, signal_name


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was ended by SIGKILL"),
        (-int(signal.SIGRTMIN), "was ended by SIGRTMIN"),
        (-int(signal.SIGRTMIN) - 1, "was ended by SIGRTMIN+1"),
        (-int(signal.SIGRTMAX), "was ended by SIGRTMAX"),
        (-99, "was ended by signal 99"),
    ],
)
def test_every_exit_code_has_words(code: int, words: str) -> None:
    assert exit_words(code) == words


def test_no_signal_of_this_system_is_without_a_name() -> None:
    names = [signal_name(number) for number in range(1, signal.NSIG)]
    assert len(set(names)) == len(names)


def test_a_process_that_a_real_time_signal_ended_is_explained() -> None:
    number = signal.SIGRTMIN + 3
    code = subprocess.run([sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"], check=False).returncode
    assert exit_words(code) == "was ended by SIGRTMIN+3"
    failure = explain(code, [])
    assert failure.reason is FailureReason.CRASHED
    assert "SIGRTMIN+3" in str(failure)
