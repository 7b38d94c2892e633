"""Snapshots of processes leave out what has ended, whenever it ended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.processes import snapshots

WAITS = "import sys; sys.stdin.read()"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen([sys.executable, "-c", WAITS], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.communicate()


def test_a_running_process_is_listed_with_its_words_and_children(process: subprocess.Popen[bytes]) -> None:
    (found,) = snapshots(lambda words: WAITS in words, [psutil.Process(process.pid)])
    assert (found.pid, found.words[-1], found.children) == (process.pid, WAITS, ())
    assert found in snapshots(lambda words: WAITS in words)


@pytest.mark.parametrize("question", ["cmdline", "children"])
def test_a_process_that_ends_between_its_listing_and_a_question_is_left_out(
    process: subprocess.Popen[bytes], question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = getattr(psutil.Process, question)

    def ends_before(listed: psutil.Process) -> object:
        if listed.pid == process.pid:
            process.kill()
            process.wait()
        return asked(listed)

    monkeypatch.setattr(psutil.Process, question, ends_before)
    assert snapshots(lambda words: WAITS in words, [psutil.Process(process.pid)]) == []


def test_a_process_that_was_not_reaped_is_left_out(process: subprocess.Popen[bytes]) -> None:
    listed = psutil.Process(process.pid)
    process.kill()
    while listed.status() != psutil.STATUS_ZOMBIE:
        pass
    assert snapshots(lambda _: True, [listed]) == []
