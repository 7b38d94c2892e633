"""Free space of file systems."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Room of a file system in bytes: what this user can still write, and all."""

    free: int
    total: int


def free_bytes(folder: Path) -> int:
    """Return how many bytes this user can still write to the file system of a folder. Raises OSError."""
    return disk_space(folder).free


def disk_space(folder: Path) -> DiskSpace:
    """Return the room of the file system of a folder. Raises OSError."""
    space = os.statvfs(folder)
    return DiskSpace(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)
