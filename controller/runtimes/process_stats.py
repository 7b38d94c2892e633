"""Reads the kernel's statistics of an engine's llama.cpp: its process, processor time, states of threads, and its lost socket.

Invariant: the engine itself is not queried, so the statistics of a hung engine can be read too. Without /proc the result is None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamesh import listeners
from llamesh.processes import ProcessId

_PROC = Path("/proc")
_AT_WORK = "RD"
"""States of a thread that runs, or waits for a disk that no signal interrupts."""


@dataclass(frozen=True, slots=True)
class ProcessStats:
    """Statistics of llama.cpp at one moment."""

    pid: int
    """Process id; 0 if the process does not exist (any more)."""
    ticks: int
    """Processor time that the process has used, in the system's clock ticks."""

    @property
    def ended(self) -> bool:
        """Whether the process does not exist (any more)."""
        return self.pid == 0

    def idle_since(self, before: ProcessStats | None) -> bool:
        """Return whether the process used no processor time since the earlier statistics and no thread is running now."""
        if before is None or (self.pid, self.ticks) != (before.pid, before.ticks):
            return False
        return not any(state in _AT_WORK for state in _thread_states(self.pid))


def llama_stats(engine: ProcessId) -> ProcessStats | None:
    """Return the statistics of llama.cpp, the only child of an engine's process; None if the system does not report them."""
    try:
        children = (_PROC / str(engine.pid) / "task" / str(engine.pid) / "children").read_text(encoding="utf-8").split()
    except OSError:
        return None
    for child in children:
        fields = _stat(_PROC / child)
        if fields and fields[0] not in "ZX":
            return ProcessStats(int(child), int(fields[11]) + int(fields[12]))
    return ProcessStats(0, 0)


def has_lost_socket(engine: ProcessId, path: Path) -> bool:
    """Return whether an engine's llama.cpp listens at a Unix socket whose path was removed."""
    llama = llama_stats(engine)
    return llama is not None and not llama.ended and listeners.has_vanished(path, llama.pid)


def is_halted(process: ProcessId) -> bool:
    """Return whether a process is stopped by a signal such as SIGSTOP. False if the system does not report it."""
    return _stat(_PROC / str(process.pid))[:1] == ["T"]


def _thread_states(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            fields = _stat(task)
            if fields:
                yield fields[0]


def _stat(directory: Path) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; empty if the process has ended."""
    try:
        # The program's name is in parentheses and may contain spaces and parentheses.
        return (directory / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
