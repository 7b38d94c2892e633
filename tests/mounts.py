"""Mounts small file systems in memory, for tests that fill a disk or need a mount point.

A test is skipped where nothing can be mounted. The file system is unmounted at the end even if a process still has a file in it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of this size ("256k") at a folder, which is created and removed."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder.mkdir(mode=0o755)
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "llamesh-test", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)
    finally:
        folder.rmdir()
