"""Waits until files and folders are on the disk, so that they survive a power failure.

Each waits for the disk once, so the cost of a folder is bounded by the number and size of what it holds.
"""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Make the content of a file durable, or the names in a folder. Follows symbolic links: a folder of a mesh may be one."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Make a folder durable with all files and folders below it, each before the folder that names it."""

    def fail(error: OSError) -> None:
        raise error

    for path, _, files in os.walk(folder, topdown=False, onerror=fail):
        for name in files:
            sync(Path(path, name))
        sync(Path(path))
