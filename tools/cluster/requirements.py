"""Whether this machine can run the cluster, and what to do if it cannot."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from tools.cluster.configuration import CNI_PROGRAMS
from tools.cluster.layout import BIN, PATH

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ipset": "ipset",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
"""Programs, each with the package of Debian and Ubuntu that has it."""
UNSHARE = (
    "unshare",
    *("--net", "--mount", "--pid", "--ipc", "--uts", "--cgroup"),
    *("--fork", "--propagation=private"),
)
"""Runs a command in namespaces of its own."""
HIDDEN = ("/run", "/var", "/proc", "/sys")
"""Folders of which the node sees its own."""


def lacking(folder: Path) -> str:
    """Why no cluster can run here in a folder, with the remedy; empty if one can."""
    if platform.system() != "Linux" or os.geteuid() != 0:
        return "it needs Linux and root: it makes namespaces, mounts and control groups"
    packages = {package for program, package in PACKAGES.items() if shutil.which(program, path=PATH) is None}
    if not Path(CNI_PROGRAMS, "bridge").exists():
        packages.add("containernetworking-plugins")
    if packages:
        return f"not installed: apt-get install --no-install-recommends {' '.join(sorted(packages))}"
    if not all((BIN / program).exists() for program in ("kubernetes", "pause", "relay")):
        return "not built: python tools/build.py kubernetes"
    probe = [*UNSHARE, "mount", "-t", "sysfs", "probe", "/sys"]
    if (done := subprocess.run(probe, capture_output=True, text=True, check=False)).returncode:
        return f"this root may not make namespaces and mounts: {done.stderr.strip()}"
    if any(folder.resolve().is_relative_to(hidden) for hidden in HIDDEN):
        return f"the folder is below one of {', '.join(HIDDEN)}, which the node cannot see: choose another one"
    return ""
