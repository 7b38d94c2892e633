"""The components' log files: one each, appended to by the component itself, kept from growing by the supervisor.

A component writes straight into its file, so a busy or stopped supervisor never holds it up. A full file is copied away and
emptied in place (the component goes on writing to it); lines written during the copy itself may be lost. On a full disk older
logs are given up first: a log that cannot be put aside is emptied all the same.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path

NAMES = ("controller", "gateway", "contract", "download", "quant", "envoy")
"""The components that have a log file."""

LARGEST = 16 * 1024 * 1024
"""Bytes after which a log file is put aside."""

KEPT = 3
"""Files put aside for each component; the oldest goes."""


def open_log(logs: Path, name: str) -> int:
    """Open a component's log for appending; the caller closes it."""
    return os.open(path_of(logs, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def path_of(logs: Path, name: str) -> Path:
    """Where a component's log is."""
    return logs / f"{name}.log"


def rotate(logs: Path, name: str, largest: int = LARGEST) -> bool:
    """Put a full log aside; whether it was full."""
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
    """Keep a full log as number 1. On a full disk the oldest ones are given up for it, in the end the log itself."""
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
    """The last lines of a log; none if there is no log, or it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
    except OSError:
        return []
