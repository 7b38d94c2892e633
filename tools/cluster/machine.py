"""What the cluster's own mount and network namespaces show: its own /run, /var, /sys and kernel settings, and a network of one node.

Everything here is called by the first process of the namespaces (`tools.cluster.node`) before it starts a program. Nothing of it is seen
outside, and nothing of it outlives the namespaces.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tools.cluster import control_groups
from tools.cluster.layout import NODE, NODE_ADDRESS, PROGRAM, Layout

KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What the kubelet sets for the whole machine if it finds other values. Here it finds these, in files, and changes nothing."""
MOUNTED_PROGRAM = Path("/run/kubernetes")
"""Where pods of addons.yaml find the program."""
NETWORK_SETTINGS = {"ipv4/ip_forward": "1", "bridge/bridge-nf-call-iptables": "1"}
"""Of the network namespace: forward packets of pods, and let kube-proxy's rules see those between pods of this node."""


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True)


def _mount_control_groups(unified: bool, names: list[str]) -> None:
    """Show only the cluster's own groups: a new mount begins at the root of the control group namespace."""
    mount = control_groups.MOUNT
    if unified:
        _run("mount", "-t", "cgroup2", "cgroup2", mount)
        control_groups.delegate()
        return
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "cgroups", mount)
    for name in names:
        (mount / name).mkdir()
        options = name if "systemd" not in name else f"none,name={name}"
        _run("mount", "-t", "cgroup", "-o", options, "cgroup", mount / name)


def mount_file_systems(layout: Layout) -> None:
    """Mount them, in a namespace whose mounts do not propagate."""
    _run("mount", "-t", "proc", "proc", "/proc")
    unified, names = control_groups.unified(), list(control_groups.hierarchies())
    # A mount of sysfs shows the network interfaces of the namespace in which it was made.
    _run("umount", "--recursive", "--lazy", "/sys")
    _run("mount", "-t", "sysfs", "sysfs", "/sys")
    _mount_control_groups(unified, names)
    _run("mount", "-t", "tmpfs", "-o", "mode=755", "run", "/run")
    MOUNTED_PROGRAM.touch()
    _run("mount", "--bind", PROGRAM, MOUNTED_PROGRAM)
    var = layout.state / "var"
    for name in ("lib/kubelet", "log/pods", "log/containers", "tmp", "cache"):
        (var / name).mkdir(parents=True)
    (var / "run").symlink_to("/run")
    _run("mount", "--bind", var, "/var")
    settings = layout.state / "kernel"
    for name, value in KERNEL_SETTINGS.items():
        file = settings / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n", encoding="ascii")
        _run("mount", "--bind", file, Path("/proc/sys") / name)
    # The kubelet's volumes are mounted here and must appear in containers that started earlier.
    _run("mount", "--bind", var / "lib/kubelet", "/var/lib/kubelet")
    _run("mount", "--make-shared", "/var/lib/kubelet")


def make_network() -> None:
    """Make loopback and the interface of the node, whose address is on no wire."""
    _run("hostname", NODE)
    _run("ip", "link", "set", "lo", "up")
    # A pair has a carrier without a wire, and each kernel that runs containers has this type.
    _run("ip", "link", "add", "node", "type", "veth", "peer", "name", "nowhere")
    _run("ip", "link", "set", "nowhere", "up")
    _run("ip", "address", "add", f"{NODE_ADDRESS}/24", "dev", "node")
    _run("ip", "link", "set", "node", "up")
    # Addresses of services need a route before kube-proxy's rules replace them.
    _run("ip", "route", "add", "default", "dev", "node", "src", NODE_ADDRESS)
    for name, value in NETWORK_SETTINGS.items():
        (Path("/proc/sys/net") / name).write_text(value, encoding="ascii")
