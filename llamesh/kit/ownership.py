"""Who owns a home: at most one process of each member (gateway, contract, download, controller) for each LLAMESH_HOME.

Invariant: a holder that dies in any way gives its lock back (`llamesh.locks`). The lock lies in the home and not in the run directory,
because the run directory may be removed at any time and depends on XDG_RUNTIME_DIR. What is shared by several homes (one database) is owned
by leases: see `leases`.
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

from llamesh import locks
from llamesh.kit.logs import log
from llamesh.locations import make_private
from llamesh.processes import ProcessId

HELD_SECONDS = 2.0
"""How long a lock is waited for whose holder does not say that it is ending: a killed process needs a moment to be gone."""
_POLL_SECONDS = 0.05


class HeldError(Exception):
    """Another process holds the lock and is not about to end."""

    def __init__(self, name: str, holder: int | None) -> None:
        who = f"process {holder}" if holder else "another process"
        super().__init__(f"{who} is the {name} of this home already")
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Owner:
    """One member of one home, as leases know it."""

    id: str
    """The same after a restart, different for every home and machine."""
    words: str
    """For people: process, host and home."""


def owner_of(home: Path, name: str) -> Owner:
    """The owner that this process is. The home gets an id of its own the first time."""
    host = socket.gethostname()
    path = make_private(home) / "home-id"
    try:
        identifier = path.read_text().strip()
    except FileNotFoundError:
        identifier = _new_identifier(path)
    # A home that is copied keeps its id: host and path tell the copy apart.
    return Owner(f"{identifier}@{host}:{home}/{name}", f"process {os.getpid()} on host {host}, home {home}")


def _new_identifier(path: Path) -> str:
    """Give the home an id, or take the one that another member has given it meanwhile."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        unfinished.write_text(uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):
            # Unlike a rename, a link never replaces the id that another member wrote first.
            os.link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path.read_text().strip()


class HomeLock:
    """A lock that this process holds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._write(ending=False)

    def say_ending(self) -> None:
        """Tell who waits for the lock that it is about to be free."""
        self._write(ending=True)

    def _write(self, *, ending: bool) -> None:
        process = ProcessId.of(os.getpid())
        # The lock counts, not the words: a full disk costs the words only.
        with contextlib.suppress(OSError):
            locks.write_holder(self._descriptor, {"pid": process.pid, "started": process.started, "ending": ending})


def lock_path(home: Path, name: str) -> Path:
    """The file that a member's process locks."""
    return home / "locks" / f"{name}.lock"


@asynccontextmanager
async def exclusive(home: Path, name: str, ending_seconds: float) -> AsyncIterator[HomeLock]:
    """Be the only process of this member in this home. A holder that says it is ending is waited for, `ending_seconds` at most.

    HeldError where another process goes on holding it.
    """
    make_private(home)
    path = lock_path(home, name)
    make_private(path.parent)
    descriptor = await _locked(path, name, ending_seconds)
    try:
        yield HomeLock(descriptor)
    finally:
        # Removed while it is still locked: whoever opened it meanwhile sees that it is nobody's file any more.
        path.unlink(missing_ok=True)
        os.close(descriptor)


async def _locked(path: Path, name: str, ending_seconds: float) -> int:
    began = time.monotonic()
    said = False
    while True:
        descriptor = locks.open_file(path)
        try:
            if locks.take(descriptor):
                if os.fstat(descriptor).st_nlink:
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
        if not said:
            said = True
            log.warning("another process holds the lock; waiting for its end", lock=str(path), holder=holder)
        await asyncio.sleep(_POLL_SECONDS)


def _holder(descriptor: int) -> tuple[int | None, bool]:
    found = locks.read_holder(descriptor)
    try:
        return int(found["pid"]), bool(found["ending"])
    except (ValueError, KeyError, TypeError):
        return None, False
