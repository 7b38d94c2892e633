"""Processor cores that this process may use, on a machine or in a container.

Invariant: at least one core, and never more than the affinity (cpuset) of the process and the limits of all its cgroups allow.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_PROCESSORS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Cores:
    """Usable physical cores, each as its logical processors (two with SMT), and the limit of processor time."""

    groups: tuple[tuple[int, ...], ...]
    """Logical processors of each physical core that the process may run on."""
    limit: float = math.inf
    """Processor time that the cgroups allow, in processors; infinite without a limit."""

    @property
    def processors(self) -> int:
        """Number of logical processors."""
        return sum(map(len, self.groups))

    @property
    def usable(self) -> int:
        """Number of busy processes that may share them; a limit of 1.5 processors counts as 2."""
        return max(1, math.ceil(min(self.processors, self.limit)))


def grouped(allowed: Iterable[int], siblings: Mapping[int, str]) -> tuple[tuple[int, ...], ...]:
    """Group the allowed processors by physical core. `siblings` has the kernel's list for each ("0,4"); without one it is its own core."""
    groups: dict[str, list[int]] = {}
    for processor in sorted(allowed):
        groups.setdefault(siblings.get(processor) or str(processor), []).append(processor)
    return tuple(map(tuple, groups.values()))


def lowest(limits: Iterable[str]) -> float:
    """Return the lowest limit in the format of `cpu.max`: "150000 100000" means 1.5 processors; "max 100000" and "" mean no limit."""
    found = math.inf
    for limit in limits:
        quota, _, period = limit.strip().partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            found = min(found, int(quota) / int(period))
    return found


def cores() -> Cores:
    """Return what this process may use now."""
    if hasattr(os, "sched_getaffinity"):
        allowed: Iterable[int] = os.sched_getaffinity(0)
    else:
        allowed = range(os.cpu_count() or 1)
    siblings = {each: _read(_PROCESSORS / f"cpu{each}" / "topology" / "thread_siblings_list") for each in allowed}
    return Cores(grouped(allowed, siblings), lowest(_limits()))


def usable_cores() -> int:
    """Return the number of cores that this process may keep busy; at least 1."""
    return cores().usable


def _limits() -> Iterator[str]:
    """Yield the limits of the process's cgroups and their parents, of version 2 and version 1."""
    for line in _read(_MEMBERSHIP).splitlines() or ["0::/"]:
        _, kinds, path = (*line.split(":", 2), "", "")[:3]
        if not kinds:
            for folder in _with_parents(_CGROUPS, path):
                yield _read(folder / "cpu.max")
        elif "cpu" in kinds.split(","):
            for folder in _with_parents(_CGROUPS / "cpu", path):
                yield f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"


def _with_parents(root: Path, path: str) -> Iterator[Path]:
    """Yield the folders from `root` down to `path`. In a container the path is often that of the host and does not exist."""
    folder = root
    yield folder
    for name in path.strip("/").split("/"):
        folder = folder / name
        yield folder


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
