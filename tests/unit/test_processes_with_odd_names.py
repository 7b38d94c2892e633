"""A process with a name that is no text is looked at like any other. The kernel cuts names at 15 bytes, within a letter too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from controller.runtimes.process_stats import is_halted
from llamesh import processes
from llamesh.processes import ProcessId

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the name is set and read as on Linux")
NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, "серверданные".encode(), 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "named\n"
        yield process.pid
        process.stdin.close()


def test_a_name_that_is_cut_within_a_letter_is_shown(pid: int) -> None:
    assert processes.program_of(pid) == "серверд\ufffd"
    assert processes.parent_of(pid) > 0
    process = ProcessId.of(pid)
    assert process.alive
    assert not is_halted(process)
