"""One mesh for each LLAMESH_HOME: an exclusive lock on a file that also says who holds it.

Invariant: the lock is the kernel's (flock), so a holder that dies in any way lets go; what the file says is only believed while
the lock is held and the process named there is the one that wrote it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llamesh.cli.mesh.identity import ProcessId


class MeshRunningError(Exception):
    """Another mesh holds the lock."""

    def __init__(self, holder: ProcessId | None) -> None:
        super().__init__("a mesh is running already")
        self.holder = holder


def _path(home: Path) -> Path:
    return home / "mesh.lock"


@contextmanager
def held(home: Path) -> Iterator[None]:
    """Hold the lock of this home. MeshRunningError where another process does."""
    descriptor = os.open(_path(home), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshRunningError(_written(home)) from None
        us = ProcessId.of(os.getpid())
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": us.pid, "started": us.started}).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def announce_ready(home: Path) -> None:
    """Say, as the holder, that the mesh is ready."""
    us = ProcessId.of(os.getpid())
    _path(home).write_text(json.dumps({"pid": us.pid, "started": us.started, "ready": True}))


def is_ready(home: Path, pid: int) -> bool:
    """Whether this process holds the lock and has said that its mesh is ready."""
    try:
        found = json.loads(_path(home).read_text())
    except (OSError, ValueError):
        return False
    return bool(found.get("pid") == pid and found.get("ready"))


def holder(home: Path) -> ProcessId | None:
    """The supervisor of this home's mesh; None where none runs."""
    try:
        descriptor = os.open(_path(home), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _written(home)
    finally:
        os.close(descriptor)
    return None


def _written(home: Path) -> ProcessId | None:
    try:
        found = json.loads(_path(home).read_text())
        process = ProcessId(int(found["pid"]), str(found["started"]))
    except (OSError, ValueError, KeyError):
        return None
    return process if process.alive else None
