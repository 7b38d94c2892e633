"""What an earlier mesh of this home left behind: processes that are still ending, sockets that nobody listens on.

Called only while the lock of the home is held, so whatever is found belongs to a mesh that is over. Records name a process by
number and start time: a number that the system gave to somebody else in the meantime is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from llamesh.local_mesh import is_held
from llamesh.processes import ProcessId

GRACE_SECONDS = 2.0
"""Children end by themselves when their supervisor dies; so long they are left to it."""


def record(run_dir: Path, processes: Iterable[ProcessId]) -> None:
    """Write down, in one step, which processes run below the supervisor. A full disk costs the record, not the mesh."""
    unfinished = _path(run_dir).with_suffix(".tmp")
    with contextlib.suppress(OSError):
        unfinished.write_text(json.dumps([{"pid": item.pid, "started": item.started} for item in processes]))
        unfinished.replace(_path(run_dir))


def clear(home: Path, run_dir: Path, grace: float = GRACE_SECONDS) -> int:
    """End what is left of an earlier mesh and remove its sockets; how many processes had to be ended by force."""
    forced = 0
    left = [process for process in _recorded(run_dir) if process.alive]
    for process in left:
        if not process.wait_gone(grace):
            process.signal(signal.SIGKILL)
            process.wait_gone(GRACE_SECONDS)
            forced += 1
    for socket in [*run_dir.glob("*.sock"), *(run_dir / "engines").glob("*.sock")]:
        if not _has_owner(home, socket.stem):
            socket.unlink(missing_ok=True)
    _path(run_dir).unlink(missing_ok=True)
    return forced


def _has_owner(home: Path, member: str) -> bool:
    """Whether a process that this supervisor did not start is this member now: its socket is in use."""
    try:
        descriptor = os.open(home / "locks" / f"{member}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_held(descriptor)
    finally:
        os.close(descriptor)


def _path(run_dir: Path) -> Path:
    return run_dir / "processes.json"


def _recorded(run_dir: Path) -> list[ProcessId]:
    """Components as the supervisor wrote them, engines as the controller did."""
    found: list[ProcessId] = []
    for path in [_path(run_dir), *(run_dir / "engines").glob("*.json")]:
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        found += [
            ProcessId(int(item["pid"]), str(item["started"]))
            for item in (content if isinstance(content, list) else [content])
            if isinstance(item, dict) and "pid" in item and "started" in item
        ]
    return found
