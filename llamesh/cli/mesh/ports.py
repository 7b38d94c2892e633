"""Are the ports free, and if not, who has them? Asked before Envoy is started, since Envoy would only log it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from pathlib import Path

from llamesh.processes import program_of


def taken(address: str, ports: Mapping[str, int]) -> list[str]:
    """Say of each port (by the setting that moves it) that cannot be listened on why; empty where all are free."""
    problems = []
    first: dict[int, str] = {}
    for setting, port in ports.items():
        # Envoy would share a port between two listeners, and answer with either.
        if port and port in first:
            problems.append(f"{first[port]} and {setting} are both {port}")
            continue
        first[port] = setting
        reason = _why_not(address, port)
        if reason:
            problems.append(reason if address in reason else f"port {port} {reason}; {setting} moves it")
    return list(dict.fromkeys(problems))


def _why_not(address: str, port: int) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do: a connection that lingers from the last run is no reason.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen()
        except PermissionError:
            return "is one of the system's (below 1024), which this user may not listen on"
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                owner = owner_of(port)
                return f"is taken by {owner}" if owner else "is taken by another process"
            return f"LLAMESH_BIND is {address}, port {port}: {error.strerror}"
    return ""


def owner_of(port: int) -> str:
    """The process that listens on a port, as "process 17 (nginx)"; empty where the system does not tell."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found = str(entry.readlink())
        except OSError:
            continue
        if found in inodes:
            pid = int(entry.parts[2])
            return f"process {pid} ({program_of(pid)})"
    return ""
