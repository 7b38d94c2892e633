"""Checks that the ports are free, and else finds who has them. Runs before Envoy starts, because Envoy would only log it.

Invariant: what is recommended does not depend on what other users wrote, or gave their processes as names and arguments.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llamesh.cli.mesh.leftovers import lives
from llamesh.cli.mesh.lock import holder
from llamesh.local_mesh import lock_file
from llamesh.processes import command_line, parent_of, program_of


@dataclass(frozen=True, slots=True)
class PortProblem:
    """Why a port cannot be listened on."""

    words: str
    by_setting: bool = False
    """Whether the settings themselves are the cause, so that a retry cannot help."""
    address: bool = False
    """Whether the address cannot be listened on, whatever the port."""
    home: str = ""
    """Home of the mesh of this user whose Envoy has the port; empty if it is another program's or another user's."""


def taken(addresses: Sequence[str], ports: Mapping[str, int]) -> list[PortProblem]:
    """Return a problem for each port that cannot be bound, with the setting of the port; empty if all ports are free."""
    problems = []
    first: dict[int, str] = {}
    for setting, port in ports.items():
        # Envoy would let two listeners share a port, and either would answer.
        if port and port in first:
            problems.append(PortProblem(f"{first[port]} and {setting} are both {port}", by_setting=True))
            continue
        first[port] = setting
        found = (_why_not(address, setting, port) for address in addresses)
        problems += [problem for problem in found if problem]
    return list(dict.fromkeys(problems))


def remedy(problems: Sequence[PortProblem]) -> str:
    """Return the remedy for these problems."""
    of_ports = [problem for problem in problems if not problem.address]
    words = []
    if len(of_ports) < len(problems):
        words.append(
            "set LLAMESH_BIND to an address of this machine, or unset it: the mesh then listens on this machine only"
        )
    if of_ports:
        words.append(f"{_ends(of_ports)}choose another port")
    return "; ".join(words)


def _ends(problems: Sequence[PortProblem]) -> str:
    """How whoever has the ports is ended, with "or" behind; empty if the settings are the cause."""
    ends = [
        f"`LLAMESH_HOME={shlex.quote(home)} llamesh down`" for home in sorted({item.home for item in problems} - {""})
    ]
    if any(not item.home and not item.by_setting for item in problems):
        ends.append("end that process")
    return "".join(f"{end}, or " for end in ends)


def _why_not(address: str, setting: str, port: int) -> PortProblem | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    moves = f"{setting} moves it"
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if family is socket.AF_INET6:  # as Envoy does: the same port of IPv4 is checked separately
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # As servers do: connections of the last run in TIME_WAIT do not matter.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen()
        except PermissionError:
            why = "is one of the system's (below 1024), which this user may not listen on"
            return PortProblem(f"port {port} {why}; {moves}", by_setting=True)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                owner = owner_of(port)
                home = mesh_of(owner) if owner else ""
                by = f"process {owner} ({program_of(owner)})" if owner else "another process"
                by = f"the mesh of {home}, {by}" if home else by
                return PortProblem(f"port {port} is taken by {by}; {moves}", home=home)
            # Not by_setting: the network may not have assigned the address yet. The words are the same for every port.
            return PortProblem(f"LLAMESH_BIND is {address}: {error.strerror}", address=True)
    return None


def mesh_of(pid: int) -> str:
    """The home of the mesh of this user that runs a process as its Envoy; empty if none does.

    The bootstrap file in the command line and the files of the parent only lead to a home. The proof is there: this user owns the home and
    its files, whose lock is held, and its supervisor recorded this process.
    """
    words = command_line(pid)
    if "--config-path" not in words[:-1]:
        return ""
    path = Path(words[words.index("--config-path") + 1])
    envoy = lives(path.parent).get("envoy")
    if not envoy or envoy.process.pid != pid or not envoy.process.is_own:
        return ""
    usual = path.parent.parent
    homes = [usual] if path == usual / "run" / "envoy.yaml" else _homes_of(parent_of(pid))
    return next((str(home) for home in homes if _is_own_mesh(home)), "")


def _is_own_mesh(home: Path) -> bool:
    with suppress(OSError):
        return home.stat().st_uid == os.geteuid() and holder(home) is not None
    return False


def _homes_of(supervisor: int) -> list[Path]:
    """The homes whose lock a process holds: its files show them. The run directory of a home with a long path is elsewhere."""
    homes = []
    for entry in Path(f"/proc/{supervisor}/fd").glob("*"):
        with suppress(OSError):
            file = entry.readlink()
            found = holder(file.parent) if file == lock_file(file.parent) else None
            if found and found.pid == supervisor:
                homes.append(file.parent)
    return homes


def owner_of(port: int) -> int:
    """The pid of the process that listens on a port; 0 if the system does not show it."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="utf-8").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return 0
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found = str(entry.readlink())
        except OSError:
            continue
        if found in inodes:
            return int(entry.parts[2])
    return 0
