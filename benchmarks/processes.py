"""Starts and stops processes under test, and reads their CPU time and memory from the system."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil


def start(command: list[str], log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process with its output in a file."""
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})


def end(*processes: subprocess.Popen[bytes]) -> None:
    """Stop processes: terminate first, then kill."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have used so far, user and system together.

    If the system has them, it uses the scheduler's figures in nanoseconds (of the threads that still run): the usual ones step by 10 ms.
    """
    return sum(_cpu_seconds(pid) for pid in pids)


def _cpu_seconds(pid: int) -> float:
    threads = list(Path(f"/proc/{pid}/task").glob("*/schedstat"))
    if not threads:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return sum(_nanoseconds(thread) for thread in threads) / 1e9


def _nanoseconds(thread: Path) -> int:
    try:
        return int(thread.read_text(encoding="utf-8").split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the memory of processes; shared memory counts once (PSS)."""
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids)


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds; RuntimeError names it after a timeout."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)
