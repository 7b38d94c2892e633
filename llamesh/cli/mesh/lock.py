"""The exclusive lock of LLAMESH_HOME, which allows one mesh. Its file has the holder and the addresses of the mesh.

Invariant: the content counts only while the lock is held and the process that it names is the one that wrote it. A lock file of another
user names no process: whoever signals the holder would signal any process that the other user chooses.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
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
def held(home: Path, addresses: Addresses, only: Iterable[str] = ()) -> Iterator[None]:
    """Hold the lock of this home and publish the mesh's addresses, and the members that run here unless all do. MeshRunningError if
    another process holds it."""
    descriptor = locks.open_file(lock_file(home))
    try:
        if not locks.take(descriptor):
            raise MeshRunningError(locks.holder(descriptor))
        # The lock is what matters, not the content; a later check reports the full disk.
        with suppress(OSError):
            words = asdict(ProcessId.of(os.getpid())) | asdict(addresses) | {"only": sorted(only)}
            locks.write_holder(descriptor, words)
        yield
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def announce_ready(home: Path) -> None:
    """Record that the mesh is ready; the caller holds the lock. Does nothing if the file was removed. OSError on a full disk."""
    with suppress(FileNotFoundError), lock_file(home).open("r+b") as file:
        locks.write_holder(file.fileno(), locks.read_holder(file.fileno()) | {"ready": True})


def is_gone(home: Path) -> bool:
    """Whether the locked file was removed, most likely with the whole home."""
    try:
        lock_file(home).stat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def is_ready(home: Path, pid: int) -> bool:
    """Whether this process holds the lock and has recorded that its mesh is ready."""
    try:
        with lock_file(home).open("rb") as file:
            found = locks.read_holder(file.fileno())
    except OSError:
        return False
    return bool(found.get("pid") == pid and found.get("ready"))


def running_members(home: Path) -> frozenset[str]:
    """Return the members that run here if a mesh runs and others of it are elsewhere; else none."""
    try:
        descriptor = os.open(lock_file(home), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return frozenset()
    try:
        found = locks.read_holder(descriptor).get("only") if locks.is_held(descriptor) else None
        return frozenset(map(str, found)) if isinstance(found, list) else frozenset()
    finally:
        os.close(descriptor)


def holder(home: Path) -> ProcessId | None:
    """Return the supervisor of this home's mesh; None if no mesh runs. PermissionError if another user's mesh does."""
    path = lock_file(home)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not locks.is_held(descriptor):
            return None
        if not locks.is_own(descriptor):
            user = os.fstat(descriptor).st_uid
            raise PermissionError(errno.EPERM, f"it belongs to user {user}, who alone may end that mesh", str(path))
        return locks.holder(descriptor)
    finally:
        os.close(descriptor)
