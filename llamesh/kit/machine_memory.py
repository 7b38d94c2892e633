"""Reads the total and the available memory of this machine.

Invariant: inside a container the container's limit counts, because memory beyond it cannot be used. `controller.footprint` decides how much
of the memory engines may use.
"""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

MAX_AGE_SECONDS = 0.25
"""Maximum age of a reading, in seconds."""
_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number of this size."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Memory of this machine, or of the container that this process runs in, in bytes."""

    total_bytes: int
    available_bytes: int
    """Memory that the system could give to a program now. Pages of files count as available, mapped or not."""


def machine_memory(root: Path = Path("/")) -> MachineMemory:
    """Read the memory now. `root` is the directory that contains proc and sys."""
    machine = _meminfo(root / "proc/meminfo") if sys.platform == "linux" else _sysctl()
    for limit, usage, files in _cgroups(root):
        # The kernel frees pages of files before it kills a process; the system's own number counts them as available too.
        left = max(0, limit - max(0, usage - files))
        machine = MachineMemory(min(machine.total_bytes, limit), min(machine.available_bytes, left))
    return machine


class RecentMemory:
    """Cache of `machine_memory`, read again after MAX_AGE_SECONDS. With a limit in bytes the total is at most the limit; 0: no limit."""

    def __init__(
        self, clock: Callable[[], float], limit_bytes: int = 0, read: Callable[[], MachineMemory] = machine_memory
    ) -> None:
        self._clock = clock
        self._limit_bytes = limit_bytes
        self._read = read
        self._read_at = -math.inf
        self._last = MachineMemory(0, 0)

    def read(self) -> MachineMemory:
        """Return the memory as it was at most MAX_AGE_SECONDS ago."""
        now = self._clock()
        if now >= self._read_at + MAX_AGE_SECONDS:
            memory = self._read()
            total = min(memory.total_bytes, self._limit_bytes or memory.total_bytes)
            self._read_at, self._last = now, replace(memory, total_bytes=total)
        return self._last


def _meminfo(path: Path) -> MachineMemory:
    values = {
        name: int(kib) * 1024
        for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    return MachineMemory(values["MemTotal"], values.get("MemAvailable", values["MemFree"]))


def _sysctl() -> MachineMemory:
    total = int(_answer("sysctl", "-n", "hw.memsize"))
    pages = dict(re.findall(r"^(Pages [\w ]+):\s+(\d+)", _answer("vm_stat"), re.MULTILINE))
    page = int(_answer("sysctl", "-n", "hw.pagesize"))
    kinds = ("Pages free", "Pages inactive", "Pages speculative", "Pages purgeable")
    return MachineMemory(total, sum(int(pages.get(kind, 0)) for kind in kinds) * page)


def _answer(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _cgroups(root: Path) -> Iterable[tuple[int, int, int]]:
    """Yield limit, usage and file pages of every cgroup of this process that has a limit."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _up(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
                yield from _up(root / "sys/fs/cgroup/memory", path, *names)


def _up(mount: Path, path: str, limit: str, usage: str, prefix: str) -> Iterable[tuple[int, int, int]]:
    """Yield this cgroup and its ancestors. In a container the path is the host's and does not exist, so the mount itself is used."""
    here = mount / path.strip("/")
    for directory in (here, *here.parents):
        with contextlib.suppress(OSError, ValueError):
            bound = (directory / limit).read_text(encoding="utf-8").strip()
            if bound != "max" and int(bound) < _UNLIMITED:
                stat = (directory / "memory.stat").read_text(encoding="utf-8")
                pages = re.findall(rf"^{prefix}(?:in)?active_file (\d+)", stat, re.MULTILINE)
                yield int(bound), int((directory / usage).read_text(encoding="utf-8")), sum(map(int, pages))
        if directory == mount:
            return
