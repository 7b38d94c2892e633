"""Identifies a process by pid and start time, because the system reuses pids. Used for the members and the engines of a mesh.

Invariant: nothing here acts on another process that has got the same pid.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Not a literal comparison: the type checker would treat the other branch as dead code.
_LINUX = platform.system() == "Linux"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid and its start time in the system's format."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Return the process that has this pid now."""
        return cls(pid, start_time(pid) or "")

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> ProcessId | None:
        """Return the process that a record names; None if the record is damaged."""
        try:
            return cls(int(record["pid"]), str(record["started"]))
        except (KeyError, ValueError, TypeError):
            return None

    @property
    def alive(self) -> bool:
        """Whether this process still runs."""
        return self.started != "" and start_time(self.pid) == self.started

    @property
    def is_own(self) -> bool:
        """Whether this process still runs, and runs as this user."""
        return _user_of(self.pid) == os.geteuid() and self.alive

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_gone(self, seconds: float) -> bool:
        """Wait until the process has ended; return False if it has not ended within this number of seconds."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def start_time(pid: int) -> str | None:
    """Return the start time of a process in the system's format; None if it has ended, even if its parent has not reaped it.

    A process has ended only when all its threads have: a killed process that frees much memory, or waits for a disk, still holds its
    sockets and files.
    """
    if _LINUX:
        try:
            # The program name, in parentheses, may contain spaces and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" and not _other_threads(pid) else fields[19]
    asked = _ps("-o", "stat=,lstart=", "-p", str(pid))
    return None if not asked or asked.startswith("Z") else asked.partition(" ")[2].strip()


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent; 0 if unknown."""
    if not _LINUX:
        shown = _ps("-o", "ppid=", "-p", str(pid))
        return int(shown) if shown.isdecimal() else 0
    try:
        return int(
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        )
    except OSError:
        return 0


def _user_of(pid: int) -> int | None:
    """Return the effective user id of a process; None if it has ended."""
    if not _LINUX:
        shown = _ps("-o", "uid=", "-p", str(pid))
        return int(shown) if shown.isdecimal() else None
    try:
        # Not the owner of the folder: that is root's if the program has capabilities.
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[2]) for line in lines if line.startswith("Uid:")), None)


def _other_threads(pid: int) -> bool:
    """Whether a process has threads besides its main thread."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def program_of(pid: int) -> str:
    """Return the program name of a process, for people; empty if unknown."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def signal_name(number: int) -> str:
    """Return the name of a signal, for people. Real-time signals without a name are counted from SIGRTMIN."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    first: int | None = getattr(signal, "SIGRTMIN", None)
    if first is not None and first < number <= signal.SIGRTMAX:
        return f"SIGRTMIN+{number - first}"
    return f"signal {number}"


def exit_words(code: int) -> str:
    """Describe how a process ended. `code` is that of `subprocess`: negative for a signal."""
    return f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"


def command_line(pid: int) -> Sequence[str]:
    """Return the words of a process's command line; none if it has ended, or the system does not show them."""
    try:
        return _words_of(Path(f"/proc/{pid}"))
    except OSError:
        return []


def command_lines() -> Iterator[tuple[ProcessId, Sequence[str]]]:
    """Yield every process and the words of its command line. Without /proc, words are split at spaces."""
    if _LINUX:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    yield ProcessId.of(int(entry.name)), _words_of(entry)
        return
    for line in _ps("-axo", "pid=,command=").splitlines():
        pid, *words = line.split()
        yield ProcessId.of(int(pid)), words


def _words_of(entry: Path) -> list[str]:
    return os.fsdecode((entry / "cmdline").read_bytes()).split("\0")[:-1]


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout.strip()
