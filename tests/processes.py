"""Lists, reads and ends processes that may end at any moment.

Invariant: no function here raises an error because a process has ended; lists leave out what ended before all was read.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from llamesh.processes import start_time

ENDING_SECONDS = 20.0
"""Seconds that the kernel may need on a busy machine to end processes that were killed or whose parent has ended."""


@dataclass(frozen=True)
class ProcessSnapshot:
    """A process that ran when it was listed."""

    process: psutil.Process
    words: tuple[str, ...]
    """Its command line."""
    children: tuple[psutil.Process, ...]
    """Those that ran."""

    @property
    def pid(self) -> int:
        return self.process.pid


def snapshots(
    wanted: Callable[[Sequence[str]], bool], among: Iterable[psutil.Process] | None = None
) -> list[ProcessSnapshot]:
    """Return the running processes with a wanted command line, by process id. `among`: all processes if None."""
    found = []
    for process in _listed() if among is None else among:
        with contextlib.suppress(psutil.Error):
            words = tuple(process.cmdline())
            if wanted(words) and start_time(process.pid) is not None:
                children = tuple(child for child in process.children() if start_time(child.pid) is not None)
                found.append(ProcessSnapshot(process, words, children))
    return sorted(found, key=lambda each: each.pid)


def mesh_processes(home: Path) -> list[psutil.Process]:
    """Processes of the mesh in a folder, but for its supervisor: told by their environment or by their arguments."""
    wanted = str(home)
    found = []
    for process in _listed():
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            # llama.cpp's own environment is scrubbed.
            ours = process.environ().get("LLAMESH_HOME") == wanted or any(wanted in word for word in words)
            if ours and "llamesh.cli.main" not in words and start_time(process.pid) is not None:
                found.append(process)
    return found


def left_behind(home: Path) -> list[psutil.Process]:
    """Processes of the mesh in a folder that do not end: those that still run after `ENDING_SECONDS`."""
    deadline = time.monotonic() + ENDING_SECONDS
    while (left := mesh_processes(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def engines(home: Path) -> set[int]:
    """The process ids of the engines of the mesh in a folder."""
    return {process.pid for process in mesh_processes(home) if "engine" in command_line(process)}


def command_line(process: psutil.Process) -> list[str]:
    """The words of its command line; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


def ended(process: psutil.Process) -> bool:
    """Whether it has ended, reaped or not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def send_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that still run."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """End those that still run."""
    send_all(processes, signal.SIGKILL)


def _listed() -> Iterator[psutil.Process]:
    """Yield all processes. `psutil.process_iter` may yield a stale object for a process id that was given out again."""
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error):
            yield psutil.Process(pid)
