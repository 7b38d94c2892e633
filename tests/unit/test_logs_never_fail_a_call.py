"""A log line that cannot be written is lost; the call that it speaks of goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
from llamesh.kit.logs import configure_logs, log
configure_logs("test", console={console})
for number in range(1000):
    log.info("call", number=number, text="x" * 100)
print("went on", flush=True)
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("console", [True, False])
def test_a_full_disk_stops_nothing(console: bool) -> None:
    with Path("/dev/full").open("w") as full:
        program = [sys.executable, "-c", PROGRAM.format(console=console)]
        assert subprocess.run(program, stdout=subprocess.PIPE, stderr=full, timeout=20).stdout == b"went on\n"


def test_log_lines_are_written_to_a_writable_stream() -> None:
    program = [sys.executable, "-c", PROGRAM.format(console=False)]
    ended = subprocess.run(program, capture_output=True, timeout=20, check=True)
    assert ended.stderr.count(b'"event": "call"') == 1000
