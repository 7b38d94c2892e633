"""A process counts as gone when its last thread has ended, not when its main thread has."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamesh.processes import ProcessId

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")

# The main thread ends alone; the other one waits for the end of its input.
_PROGRAM = """
import ctypes, os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0))).start()
os.write(1, b"x")
ctypes.CDLL(None).syscall({exit}, 0)
"""
_EXIT = {"x86_64": 60, "aarch64": 93}


@contextmanager
def half_ended() -> Iterator[subprocess.Popen[bytes]]:
    """A process whose main thread has ended while another one runs."""
    program = _PROGRAM.format(exit=_EXIT[os.uname().machine])
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.read(1)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream
            stream.close()


def test_a_process_is_alive_until_its_last_thread_has_ended() -> None:
    with half_ended() as process:
        it = ProcessId.of(process.pid)
        assert it.alive
        assert not it.wait_gone(0)
        assert process.stdin
        process.stdin.close()
        # Not reaped: what is left of it is its entry.
        assert it.wait_gone(20)
        assert not it.alive
