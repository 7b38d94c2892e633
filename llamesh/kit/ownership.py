"""The lock of a member on its home: at most one process of each member (gateway, contract, download, controller) for each LLAMESH_HOME.

Invariant: the kernel releases the lock of a process that dies in any way (`llamesh.locks`). The lock file is in the home, not in the run
directory, which may be removed at any time and depends on XDG_RUNTIME_DIR. A resource that several homes share (a database) is protected by
`leases`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from llamesh import home_files, locks
from llamesh.kit.errors import StartRefused
from llamesh.kit.logs import log
from llamesh.locations import make_private
from llamesh.processes import ProcessId

HELD_SECONDS = 2.0
"""Seconds to wait for a lock whose holder is not draining: a killed process needs a moment to disappear."""
_POLL_SECONDS = 0.05


class HeldError(Exception):
    """Another process holds the lock and is not draining."""

    def __init__(self, name: str, holder: int | None) -> None:
        who = f"process {holder}" if holder else "another process"
        super().__init__(f"{who} is already the {name} of this home")
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Owner:
    """A member of a home, as leases identify it."""

    id: str
    """Stays the same over restarts; different for every home and machine."""
    words: str
    """Description for people: process, host and home."""


def owner_of(home: Path, name: str) -> Owner:
    """Return this process as an owner; create the home's id if it has none. StartRefused if it has one that cannot be used."""
    host = socket.gethostname()
    try:
        identifier = home_files.home_id(home).read_or_create(lambda: uuid.uuid4().hex)
    except home_files.HomeFileError as error:
        raise StartRefused(f"{error}; {error.remedy}") from error
    # A copied home keeps its id, so host and path are part of the owner id.
    return Owner(f"{identifier}@{host}:{home}/{name}", f"process {os.getpid()} on host {host}, home {home}")


class HomeLock:
    """The lock that this process holds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._write(ending=False)

    def say_ending(self) -> None:
        """Record for waiting processes that this process is draining."""
        self._write(ending=True)

    def _write(self, *, ending: bool) -> None:
        process = ProcessId.of(os.getpid())
        # The lock is the kernel's; a full disk only loses this description of the holder.
        with contextlib.suppress(OSError):
            locks.write_holder(self._descriptor, {"pid": process.pid, "started": process.started, "ending": ending})


def lock_path(home: Path, name: str) -> Path:
    """Return the lock file of a member."""
    return home / "locks" / f"{name}.lock"


@asynccontextmanager
async def exclusive(home: Path, name: str, ending_seconds: float) -> AsyncIterator[HomeLock]:
    """Hold the lock of this member in this home. Waits for a holder that is draining, at most `ending_seconds`.

    Raises HeldError if another process keeps the lock.
    """
    make_private(home)
    path = lock_path(home, name)
    make_private(path.parent)
    descriptor = await _locked(path, name, ending_seconds)
    try:
        yield HomeLock(descriptor)
    finally:
        # Removed while still locked, so that a process that has just opened the file sees that it is unlinked.
        path.unlink(missing_ok=True)
        os.close(descriptor)


async def _locked(path: Path, name: str, ending_seconds: float) -> int:
    began = time.monotonic()
    logged = False
    while True:
        descriptor = locks.open_file(path)
        try:
            if locks.take(descriptor):
                if locks.names(path, descriptor):
                    return descriptor
                os.close(descriptor)
                continue
            holder, ending = _holder(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() - began > (ending_seconds if ending else HELD_SECONDS):
            raise HeldError(name, holder)
        if not logged:
            logged = True
            log.warning("another process holds the lock; waiting for it to end", lock=str(path), holder=holder)
        await asyncio.sleep(_POLL_SECONDS)


def _holder(descriptor: int) -> tuple[int | None, bool]:
    """Return the pid of the holder, if it is known here (it may run in another container), and whether it is draining."""
    process = locks.holder(descriptor)
    return process.pid if process else None, bool(locks.read_holder(descriptor).get("ending"))
