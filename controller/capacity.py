"""Memory of this machine: what there is, what is free, and what declared servers may yet ask for.

A container's limit counts where there is one: what the machine has beyond it cannot be used.
"""

from __future__ import annotations

import contextlib
import math
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from llamesh.v1.controller_pb2 import Capacity, NodeCapacity
from llamesh.v1.server_pb2 import Server

_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as a number of this size."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Bytes of memory of this machine, or of the container that we run in."""

    total_bytes: int
    available_bytes: int


def machine_memory(root: Path = Path("/")) -> MachineMemory:
    """Read it now. `root` is where proc and sys are found."""
    machine = _meminfo(root / "proc/meminfo") if sys.platform == "linux" else _sysctl()
    for limit, usage, inactive in _cgroups(root):
        # Inactive file pages are given back before anybody is killed.
        free = max(0, limit - max(0, usage - inactive))
        machine = MachineMemory(min(machine.total_bytes, limit), min(machine.available_bytes, free))
    return machine


def promised(servers: Iterable[tuple[Server, int]]) -> int:
    """Bytes that servers will take beyond what their engines take already. With each server: bytes of one engine."""
    return sum(max(0, server.replicas - server.ready_replicas) * engine_bytes for server, engine_bytes in servers)


class FreeMemory:
    """What `machine_memory` says is free, read once a second at most."""

    def __init__(self, clock: Callable[[], float], read: Callable[[], MachineMemory] = machine_memory) -> None:
        self._clock = clock
        self._read = read
        self._read_at = -math.inf
        self._available = 0

    def available(self) -> int:
        """Bytes that are free, not older than a second."""
        if self._clock() >= self._read_at + 1:
            self._read_at, self._available = self._clock(), self._read().available_bytes
        return self._available


def capacity(memory: MachineMemory, promised_bytes: int) -> Capacity:
    """The answer to GetCapacity for one machine."""
    node = NodeCapacity(
        name=socket.gethostname(),
        total_bytes=memory.total_bytes,
        available_bytes=memory.available_bytes,
        promised_bytes=promised_bytes,
    )
    return Capacity(nodes=[node])


def _meminfo(path: Path) -> MachineMemory:
    values = {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", path.read_text(), re.MULTILINE)}
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
    """Limit, usage and inactive file pages of every group we are in that has a limit."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                yield from _up(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
                yield from _up(root / "sys/fs/cgroup/memory", path, *names)


def _up(mount: Path, path: str, limit: str, usage: str, inactive: str) -> Iterable[tuple[int, int, int]]:
    """This group and all above it. Inside a container the path is the host's and not there: then the mount itself is ours."""
    here = mount / path.strip("/")
    for directory in (here, *here.parents):
        with contextlib.suppress(OSError, ValueError):
            bound = (directory / limit).read_text().strip()
            if bound != "max" and int(bound) < _UNLIMITED:
                pages = re.search(rf"^{inactive} (\d+)", (directory / "memory.stat").read_text(), re.MULTILINE)
                yield int(bound), int((directory / usage).read_text()), int(pages[1]) if pages else 0
        if directory == mount:
            return
