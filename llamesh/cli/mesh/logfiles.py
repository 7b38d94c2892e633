"""The log files of the components: each component appends to its own file, and the supervisor rotates the files.

A component writes to its file directly, so a busy or stopped supervisor never blocks it. A full file is copied and then truncated, because
the component keeps it open; lines that are written during the copy may be lost. On a full disk the oldest logs are deleted first, and a
log that cannot be copied is truncated without a copy.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path

NAMES = ("controller", "gateway", "contract", "download", "quant", "envoy")
"""The components that have a log file."""

MAX_BYTES = 16 * 1024 * 1024
"""Maximum size in bytes of a log file; one of this size is rotated."""

KEPT = 3
"""Rotated files that are kept for each component."""


def open_log(logs: Path, name: str) -> int:
    """Open a component's log for appending; the caller closes it."""
    return os.open(path_of(logs, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def path_of(logs: Path, name: str) -> Path:
    """Return the path of a component's log."""
    return logs / f"{name}.log"


def rotate(logs: Path, name: str, largest: int = MAX_BYTES) -> bool:
    """Rotate a full log. Return whether it was full."""
    path = path_of(logs, name)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size < largest:
        return False
    _copy_aside(path)
    os.truncate(path, 0)
    return True


def _copy_aside(path: Path) -> None:
    """Copy a full log to number 1. On a full disk delete the oldest logs, and at last go without the copy."""
    unfinished = path.with_suffix(".log.tmp")
    kept = [path.with_suffix(f".log.{number}") for number in range(1, KEPT + 1)]
    while True:
        try:
            from shutil import copyfile

            copyfile(path, unfinished)
            break
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            oldest = next((each for each in reversed(kept) if each.exists()), None)
            if oldest is None:
                return
            oldest.unlink()
    for number in range(KEPT - 1, 0, -1):
        older = path.with_suffix(f".log.{number}")
        if older.exists():
            older.replace(path.with_suffix(f".log.{number + 1}"))
    unfinished.replace(path.with_suffix(".log.1"))


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last lines of a log; none if it is missing or cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
    except OSError:
        return []
