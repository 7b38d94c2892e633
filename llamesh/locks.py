"""File locks (flock) whose file describes the holder: the locks of a home's supervisor and of its members.

Invariant: the kernel releases the lock when its holder dies in any way. The description is written in one step and counts only while the
lock is held. Another user may hold the lock of a file of his own that describes any process, so such a description names no holder.
Imports the standard library only, because every command uses it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamesh.processes import ProcessId

_LENGTH = 512
"""Length in bytes to which a description is padded, so that it overwrites an earlier, longer one."""
_MAX_BYTES = 4096


def names(path: Path, descriptor: int) -> bool:
    """Whether a path names an open file now. Ask after the lock was taken: it protects nothing if its file was removed or replaced before.

    The number of links does not say so, because a removed file may have other names.
    """
    try:
        found = path.stat()
    except OSError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def open_file(path: Path) -> int:
    """Open the lock file; create it if it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take(descriptor: int) -> bool:
    """Take the lock until the descriptor is closed; False if another process holds it."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Remove the description of an earlier holder.
    os.ftruncate(descriptor, 0)
    return True


def wait(descriptor: int) -> None:
    """Take the lock until the descriptor is closed; wait while another process holds it."""
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_EX)


def is_held(descriptor: int) -> bool:
    """Whether another process holds the lock of an open file."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def write_holder(descriptor: int, words: Mapping[str, Any]) -> None:
    """Write the description of the holder; OSError on a full disk."""
    os.pwrite(descriptor, json.dumps(words).encode().ljust(_LENGTH), 0)


def read_holder(descriptor: int) -> dict[str, Any]:
    """Read the description of the holder; empty if it is missing or damaged."""
    try:
        found = json.loads(os.pread(descriptor, _MAX_BYTES, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def holder(descriptor: int) -> ProcessId | None:
    """Return the process that the description of a held lock names; None unless this user owns the file and runs the process."""
    from llamesh.processes import ProcessId

    found = ProcessId.recorded(read_holder(descriptor)) if is_own(descriptor) else None
    return found if found and found.is_own else None


def is_own(descriptor: int) -> bool:
    """Whether this user owns an open file. The content of another user's file is that user's choice."""
    return os.fstat(descriptor).st_uid == os.geteuid()
