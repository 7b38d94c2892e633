"""One mesh for each LLAMESH_HOME: an exclusive lock on a file that also says who holds it and where it answers.

Invariant: the lock is the kernel's (flock), so a holder that dies in any way lets go; what the file says is only believed while
the lock is held and the process named there is the one that wrote it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamesh.local_mesh import Addresses, is_held, lock_file
from llamesh.processes import ProcessId


class MeshRunningError(Exception):
    """Another mesh holds the lock."""

    def __init__(self, holder: ProcessId | None) -> None:
        super().__init__("a mesh is running already")
        self.holder = holder


@contextmanager
def held(home: Path, addresses: Addresses) -> Iterator[None]:
    """Hold the lock of this home and say where its mesh answers. MeshRunningError where another process holds it."""
    descriptor = os.open(lock_file(home), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MeshRunningError(_written(home)) from None
        os.ftruncate(descriptor, 0)
        # The lock counts, not the words: that the disk is full is said by who looks at the disk next.
        with suppress(OSError):
            os.pwrite(descriptor, json.dumps(asdict(ProcessId.of(os.getpid())) | asdict(addresses)).encode(), 0)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def announce_ready(home: Path) -> None:
    """Say, as the holder, that the mesh is ready. Nothing where the file was taken away."""
    with suppress(FileNotFoundError, ValueError), lock_file(home).open("r+") as file:
        # One write over the shorter text that is there: who reads meanwhile reads either.
        said = json.dumps(json.load(file) | {"ready": True})
        file.seek(0)
        file.write(said)


def is_gone(home: Path) -> bool:
    """Whether the file that its holder locked was taken away, most likely with the whole home."""
    try:
        lock_file(home).stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def is_ready(home: Path, pid: int) -> bool:
    """Whether this process holds the lock and has said that its mesh is ready."""
    found = _read(home) or {}
    return bool(found.get("pid") == pid and found.get("ready"))


def holder(home: Path) -> ProcessId | None:
    """The supervisor of this home's mesh; None where none runs."""
    try:
        descriptor = os.open(lock_file(home), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _written(home) if is_held(descriptor) else None
    finally:
        os.close(descriptor)


def _written(home: Path) -> ProcessId | None:
    found = _read(home) or {}
    process = ProcessId(int(found.get("pid", 0)), str(found.get("started", "")))
    return process if process.alive else None


def _read(home: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(lock_file(home).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
