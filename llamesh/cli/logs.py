"""`llamesh logs`: lines of a component of the mesh that runs here, or of a server's engine, wherever it runs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.types import UInt16

from llamesh.cli.connection import connected, elsewhere
from llamesh.cli.failure import CommandError, Exit, visible
from llamesh.cli.lookups import find_server
from llamesh.cli.mesh import logfiles
from llamesh.cli.printing import put
from llamesh.locations import home_directory

POLL_SECONDS = 0.2


def logs(
    name: str = "",
    *,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), negative="")] = False,
    tail: UInt16 = 100,
    replica: UInt16 = 0,
) -> None:
    """Print the last log lines of a server's engine or of a component.

    Parameters
    ----------
    name
        A server (its id, its name, or a name of its model), of any mesh; or a component of the mesh on this machine: controller,
        gateway, contract, download, quant, envoy. Empty: all components.
    follow
        Go on with lines that come.
    tail
        So many lines from the end.
    replica
        Which engine of the server.
    """
    if not name or name in logfiles.NAMES:
        _components([name] if name else list(logfiles.NAMES), follow=follow, tail=tail)
        return
    with connected() as mesh:
        for line in mesh.servers.logs(find_server(mesh, name), replica=replica, tail=tail, follow=follow):
            _show("", line)


def _components(names: Sequence[str], *, follow: bool, tail: int) -> None:
    if url := elsewhere():
        word = f" {names[0]}" if len(names) == 1 else ""
        raise CommandError(
            f"the logs of components are files of the mesh's machine, and {url} is not the mesh of this machine's home",
            hint=f"`llamesh logs{word}` on its machine shows them; from here `llamesh logs SERVER` shows an engine's log",
            code=Exit.USAGE,
        )
    folder = home_directory(os.environ) / "logs"
    paths = {name: logfiles.path_of(folder, name) for name in names}
    if not any(path.exists() for path in paths.values()):
        raise CommandError(f"there are no logs in {folder}", hint="llamesh up", code=Exit.NOT_FOUND)
    prefix = len(names) > 1
    ends = {name: path.stat().st_size if path.exists() else 0 for name, path in paths.items()}
    for name, path in paths.items():
        for line in logfiles.last_lines(path, tail):
            _show(name if prefix else "", line)
    while follow:
        for name, path in paths.items():
            for line in _new_lines(path, ends, name):
                _show(name if prefix else "", line)
        time.sleep(POLL_SECONDS)


def _new_lines(path: Path, ends: dict[str, int], name: str) -> Iterator[str]:
    """Yield the whole lines written since the last call; from the beginning if the file was truncated."""
    if not path.exists():
        return
    if path.stat().st_size < ends[name]:
        ends[name] = 0
    with path.open("rb") as file:
        file.seek(ends[name])
        for line in file:
            if not line.endswith(b"\n"):
                return
            ends[name] += len(line)
            yield line.decode(errors="replace").rstrip("\n")


def _show(name: str, line: str) -> None:
    shown = visible(_readable(line)) if sys.stdout.isatty() else line
    put(f"{name:<11}{shown}\n" if name else f"{shown}\n")


def _readable(line: str) -> str:
    """A line of a member of the mesh, without the marks of JSON; any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        found = json.loads(line)
        moment, level, event = (str(found.pop(key, "")) for key in ("timestamp", "level", "event"))
    except (ValueError, AttributeError):
        return line
    return f"{moment} {level:<7} {event} " + " ".join(f"{key}={value}" for key, value in found.items())
