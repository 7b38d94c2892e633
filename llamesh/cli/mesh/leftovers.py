"""Records the processes of a mesh in its run directory, and lets a later mesh of the same home end what is left of them.

Invariant: `clear` is called only while the lock of the home is held, so all records belong to a mesh that has ended.
A record identifies a process by pid and start time, so another process with a reused pid is never touched. Records of another user, and
processes of another user, are not touched either. Any file may be missing or damaged.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llamesh import certificates, envoy_secrets, locks, private_files, waiting
from llamesh.private_files import write_private
from llamesh.processes import ProcessId
from llamesh.regular_files import NotRegularError, open_regular

GRACE_SECONDS = 2.0
"""Seconds to wait for children, which end by themselves when their supervisor dies."""

_NONE = ProcessId(0, "")


@dataclass(slots=True)
class Life:
    """The supervisor's record of one component."""

    process: ProcessId = field(default=_NONE)
    """The process that runs, or ran last."""
    restarts: int = 0
    """Number of restarts, after an exit or a kill."""
    silences: int = 0
    """Number of kills because of unanswered liveness probes."""
    last_output: str = ""
    """Its last output before it last exited by itself."""


def record(run_dir: Path, lives: Mapping[str, Life]) -> None:
    """Record atomically which processes run and how often each was restarted. After an OSError the old record is unchanged."""
    items = [
        {
            "name": name,
            **asdict(life.process),
            "restarts": life.restarts,
            "silences": life.silences,
            "words": life.last_output,
        }
        for name, life in lives.items()
    ]
    write_private(_path(run_dir), json.dumps(items).encode(), durable=False)


def lives(run_dir: Path) -> dict[str, Life]:
    """Return the records of the named components; none if the file is missing or damaged."""
    found = {}
    for item in _items(_path(run_dir)):
        with contextlib.suppress(KeyError, ValueError, TypeError):
            process = ProcessId.recorded(item) or _NONE
            found[str(item["name"])] = Life(process, int(item["restarts"]), int(item["silences"]), str(item["words"]))
    return found


def clear(home: Path, run_dir: Path, grace: float = GRACE_SECONDS) -> int:
    """End the processes of an earlier mesh and remove its files. Return how many processes had to be killed."""
    forced = 0
    left = [process for process in _recorded(run_dir) if process.is_own]
    for process in left:
        if not process.wait_gone(grace):
            process.signal(signal.SIGKILL)
            process.wait_gone(GRACE_SECONDS)
            forced += 1
    _sweep(home, run_dir)
    return forced


def _sweep(home: Path, run_dir: Path) -> None:
    """Remove the files of a mesh that has ended, then the folder if it is empty. Other files stay."""
    sockets = [path for path in run_dir.glob("*.sock") if not _has_owner(home, path.stem)]
    records = [
        *run_dir.glob("envoy.*"),
        *run_dir.glob("processes.*"),
        *run_dir.glob(f"*{waiting.SUFFIX}"),
        *run_dir.glob(f".*{private_files.SUFFIX}"),
        run_dir / "controller.lock",
    ]
    of_envoy = home / envoy_secrets.FOLDER
    for folder in (run_dir, of_envoy):
        # The first holds a copy of the key.
        records.append(certificates.secret_file(folder))
        records += [envoy_secrets.certificate_file(folder), envoy_secrets.authorities_file(folder)]
    for path in [*sockets, *records, *(run_dir / "engines").glob("*")]:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    for folder in (run_dir / "engines", run_dir, of_envoy):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _has_owner(home: Path, member: str) -> bool:
    """Whether a process that this supervisor did not start serves as this member: its lock is held."""
    try:
        descriptor = os.open(home / "locks" / f"{member}.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return locks.is_held(descriptor)
    finally:
        os.close(descriptor)


def _path(run_dir: Path) -> Path:
    return run_dir / "processes.json"


def _recorded(run_dir: Path) -> list[ProcessId]:
    """Read the processes that the supervisor (components) and the controller (engines) recorded."""
    paths = [_path(run_dir), *(run_dir / "engines").glob("*.json")]
    found = [ProcessId.recorded(item) for path in paths for item in _items(path)]
    return [process for process in found if process]


def _items(path: Path) -> list[dict[str, Any]]:
    """Read the records of a file; none if it is another user's."""
    try:
        with open_regular(path) as file:
            content = json.loads(file.read()) if locks.is_own(file.fileno()) else []
    except (OSError, NotRegularError, ValueError, RecursionError):
        return []
    return [item for item in (content if isinstance(content, list) else [content]) if isinstance(item, dict)]
