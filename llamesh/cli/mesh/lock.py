"""One mesh for each LLAMESH_HOME: an exclusive lock on a file that also says who holds it and where it answers.

Invariant: what the file says is only believed while the lock is held and the process named there is the one that wrote it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from llamesh import locks
from llamesh.local_mesh import Addresses, lock_file
from llamesh.processes import ProcessId


class MeshRunningError(Exception):
    """Another mesh holds the lock."""

    def __init__(self, holder: ProcessId | None) -> None:
        super().__init__("a mesh is running already")
        self.holder = holder


@contextmanager
def held(home: Path, addresses: Addresses) -> Iterator[None]:
    """Hold the lock of this home and say where its mesh answers. MeshRunningError where another process holds it."""
    descriptor = locks.open_file(lock_file(home))
    try:
        if not locks.take(descriptor):
            raise MeshRunningError(_holder(descriptor))
        # The lock counts, not the words: that the disk is full is said by who looks at the disk next.
        with suppress(OSError):
            locks.write_holder(descriptor, asdict(ProcessId.of(os.getpid())) | asdict(addresses))
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def announce_ready(home: Path) -> None:
    """Say, as the holder, that the mesh is ready. Nothing where the file was taken away. OSError on a full disk."""
    with suppress(FileNotFoundError), lock_file(home).open("r+b") as file:
        locks.write_holder(file.fileno(), locks.read_holder(file.fileno()) | {"ready": True})


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
    try:
        with lock_file(home).open("rb") as file:
            found = locks.read_holder(file.fileno())
    except OSError:
        return False
    return bool(found.get("pid") == pid and found.get("ready"))


def holder(home: Path) -> ProcessId | None:
    """The supervisor of this home's mesh; None where none runs."""
    try:
        descriptor = os.open(lock_file(home), os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return _holder(descriptor) if locks.is_held(descriptor) else None
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> ProcessId | None:
    found = locks.read_holder(descriptor)
    process = ProcessId(int(found.get("pid", 0)), str(found.get("started", "")))
    return process if process.alive else None
