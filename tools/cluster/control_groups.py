"""The control groups of a cluster: one below that of the caller in each hierarchy, so that the caller's limits hold for it.

The kernel ends processes, mounts and networks with their namespaces, but leaves control groups: their folders are written down before they
are made, so that whoever comes next removes them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tools.cluster.layout import Layout

MOUNT = Path("/sys/fs/cgroup")
REMOVAL_SECONDS = 10.0
"""The kernel takes a moment until it counts the last process of a group as gone."""
CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids", "hugetlb")
"""Those that the kubelet uses, where control groups have one hierarchy."""


def unified() -> bool:
    """Whether this machine has one hierarchy (version 2) only."""
    return (MOUNT / "cgroup.controllers").exists()


def hierarchies() -> dict[str, str]:
    """Hierarchies of version 1 that are mounted: folder below `MOUNT` -> the group of this process. {"": ...} with version 2."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        name = controllers.removeprefix("name=")
        if (name == "") == unified() and (MOUNT / name).is_dir():
            # With version 2 a group that has processes cannot pass controllers on; only the root can.
            found[name] = "/" if unified() else group
    return found


def enter(layout: Layout) -> None:
    """Make the groups and move this process into them."""
    name = f"llamesh-cluster-{os.getpid()}"
    folders = {each: MOUNT / each / group.lstrip("/") / name for each, group in hierarchies().items()}
    layout.control_groups.write_text("".join(f"{folder}\n" for folder in folders.values()), encoding="utf-8")
    for hierarchy, folder in folders.items():
        folder.mkdir()
        if "cpuset" in hierarchy.split(","):
            # A new group has no cores and no memory, and takes no process before it has.
            for file in ("cpuset.cpus", "cpuset.mems"):
                (folder / file).write_bytes((folder.parent / file).read_bytes())
        (folder / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")


def delegate() -> None:
    """With version 2: make room for groups below the root of this namespace, which may then have no process itself."""
    own = MOUNT / "programs"
    own.mkdir()
    for process in (MOUNT / "cgroup.procs").read_text(encoding="ascii").split():
        (own / "cgroup.procs").write_text(process, encoding="ascii")
    offered = (MOUNT / "cgroup.controllers").read_text(encoding="ascii").split()
    wanted = " ".join(f"+{each}" for each in CONTROLLERS if each in offered)
    (MOUNT / "cgroup.subtree_control").write_text(wanted, encoding="ascii")


def remove(layout: Layout) -> None:
    """Remove the groups that were written down, after their processes ended. OSError if one stays."""
    if not layout.control_groups.exists():
        return
    for line in layout.control_groups.read_text(encoding="utf-8").splitlines():
        _remove(Path(line))
    layout.control_groups.unlink()


def _remove(group: Path) -> None:
    deadline = time.monotonic() + REMOVAL_SECONDS
    for folder, _, _ in os.walk(group, topdown=False):
        while True:
            try:
                Path(folder).rmdir()
            except FileNotFoundError:
                pass
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
                continue
            break
