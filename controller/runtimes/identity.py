"""Which process a pid means: with its start time it names one process for good, also after the controller was killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.2
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

    async def gone(self) -> None:
        """Return when the process has ended; it need not be a child."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # not Linux, or it is gone, or the kernel has no such call
            while self.alive:  # noqa: ASYNC110 - there is nothing to wait on
                await asyncio.sleep(_POLL_SECONDS)
            return
        try:
            # Opened by number: between the record and now it may have gone to somebody else.
            if self.alive:
                await _readable(descriptor)
        finally:
            os.close(descriptor)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)


def start_time(pid: int) -> str | None:
    """When the process started, as the system says it; None where there is none, or only its unreaped entry is left."""
    if _LINUX:
        try:
            # The program's name, in parentheses, may itself hold spaces and parentheses.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else fields[19]
    asked = _ps("-o", "stat=,lstart=", "-p", str(pid))
    return None if not asked or asked.startswith("Z") else asked.partition(" ")[2].strip()


def find_by_argument(argument: str) -> ProcessId | None:
    """The process that was started with this argument; None where there is none."""
    if _LINUX:
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if argument.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                        return ProcessId.of(int(entry.name))
        return None
    for line in _ps("-axo", "pid=,command=").splitlines():
        pid, _, command = line.strip().partition(" ")
        if argument in command:
            return ProcessId.of(int(pid))
    return None


def _ps(*arguments: str) -> str:
    return subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False).stdout.strip()
