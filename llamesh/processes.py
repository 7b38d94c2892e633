"""Which process a pid means. A number alone is reused by the system; with its start time it names one process for good.

The supervisor keeps its children so, and the controller its engines. Invariant: nothing here acts on a process that has only
come to have the number.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Not a literal comparison: the type checker would take the other branch for dead.
_LINUX = platform.system() == "Linux"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process: its number and when it started, in the system's own words."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """The process that has this number now."""
        return cls(pid, start_time(pid) or "")

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.started != "" and start_time(self.pid) == self.started

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait_gone(self, seconds: float) -> bool:
        """Wait until it has ended; False where it has not after so many seconds."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def start_time(pid: int) -> str | None:
    """When the process started, as the system says it; None where there is none, or only its unreaped entry is left.

    A process whose main thread has ended while others have not (a killed one that frees much memory, or waits for a disk) is not gone: it
    still holds its sockets and files.
    """
    if _LINUX:
        try:
            # The program's name, in parentheses, may itself hold spaces and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" and not _other_threads(pid) else fields[19]
    asked = _ps("-o", "stat=,lstart=", "-p", str(pid))
    return None if not asked or asked.startswith("Z") else asked.partition(" ")[2].strip()


def _other_threads(pid: int) -> bool:
    """Whether a process has threads beside its main one."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def program_of(pid: int) -> str:
    """Name of a process's program, for people; empty where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def signal_name(number: int) -> str:
    """A signal by its name, for people; real-time signals, most of which have none of their own, are counted from SIGRTMIN."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    first: int | None = getattr(signal, "SIGRTMIN", None)
    if first is not None and first < number <= signal.SIGRTMAX:
        return f"SIGRTMIN+{number - first}"
    return f"signal {number}"


def exit_words(code: int) -> str:
    """How a process ended, for people. `code` is that of `subprocess`: a negative one is the number of the signal."""
    return f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"


def command_lines() -> Iterator[tuple[ProcessId, Sequence[str]]]:
    """Every process that runs and the words of its command line. Where the system has no /proc, words end at spaces."""
    if _LINUX:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    words = os.fsdecode((entry / "cmdline").read_bytes()).split("\0")
                    yield ProcessId.of(int(entry.name)), words[:-1]
        return
    for line in _ps("-axo", "pid=,command=").splitlines():
        pid, *words = line.split()
        yield ProcessId.of(int(pid)), words


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout.strip()
