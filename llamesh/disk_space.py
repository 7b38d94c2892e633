"""Free space of file systems, and the part of it that models leave free.

Invariant: whoever fills a disk with models, variants or copies checks against the usable bytes, so that the databases, logs and settings on
the same disk can still be written: also the call that removes a model to make room.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

RESERVE_BYTES = 256 << 20
"""Bytes of a disk that models leave free. More than `llamesh up` asks for, so that a mesh whose disk is full of models starts again."""


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """Room of a file system in bytes: what this user can still write, and all."""

    free: int
    total: int

    @property
    def usable(self) -> int:
        """Bytes that models may still fill: those that are free beyond RESERVE_BYTES."""
        return max(self.free - RESERVE_BYTES, 0)


def free_bytes(folder: Path) -> int:
    """Return how many bytes this user can still write to the file system of a folder. Raises OSError."""
    return disk_space(folder).free


def disk_space(folder: Path) -> DiskSpace:
    """Return the room of the file system of a folder. Raises OSError."""
    space = os.statvfs(folder)
    return DiskSpace(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)
