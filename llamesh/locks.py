"""A lock on a file that also says who holds it. The supervisor's lock of a home and those of its members are made of it.

Invariant: the lock is the kernel's (flock), so a holder that dies in any way gives it back. What the file says is written in one step and
only to be believed while the lock is held. Nothing but the standard library is imported: every command asks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LENGTH = 512
"""Bytes that the words fill: a later, shorter text leaves nothing of an earlier one."""
_MOST_BYTES = 4096


def open_file(path: Path) -> int:
    """A descriptor of the lock's file, which is made if there is none."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def take(descriptor: int) -> bool:
    """Take the lock until the descriptor is closed; False if another process holds it."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # What an earlier holder said must not be taken for ours.
    os.ftruncate(descriptor, 0)
    return True


def is_held(descriptor: int) -> bool:
    """Whether another process holds the lock of an open file."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def write_holder(descriptor: int, words: Mapping[str, Any]) -> None:
    """Write, as the holder, what others are to know. OSError on a full disk."""
    os.pwrite(descriptor, json.dumps(words).encode().ljust(_LENGTH), 0)


def read_holder(descriptor: int) -> dict[str, Any]:
    """What the file says; nothing if it is empty or damaged."""
    try:
        found = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
