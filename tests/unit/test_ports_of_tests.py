"""Processes that run tests at the same time are given different ports."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROCESSES, PORTS = 10, 800
TAKE = f"from tests.ports import free_ports; print(*free_ports({PORTS}), flush=True); input()"


def test_processes_side_by_side_share_no_port() -> None:
    with ExitStack() as running:
        processes = []
        for _ in range(PROCESSES):
            process = subprocess.Popen([sys.executable, "-c", TAKE], cwd=ROOT, stdin=-1, stdout=-1, text=True)
            processes.append(running.enter_context(process))
            running.callback(process.kill)
        found = [port for each in processes if each.stdout for port in each.stdout.readline().split()]
    assert len(found) == len(set(found)) == PROCESSES * PORTS


def test_the_end_of_a_process_with_reservations_gives_no_warning() -> None:
    words = [sys.executable, "-X", "dev", "-c", "from tests.ports import free_ports; free_ports(1)"]
    assert subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True, timeout=60).stderr == ""
