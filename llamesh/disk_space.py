"""Free space of file systems."""

from __future__ import annotations

import os
from pathlib import Path


def free_bytes(folder: Path) -> int:
    """Return how many bytes this user can still write to the file system of a folder. Raises OSError."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize
