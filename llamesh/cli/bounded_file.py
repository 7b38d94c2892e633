"""Reads a file of the user, up to a length.

Invariant: only regular files are read. A device such as /dev/zero has no end, and a pipe without a writer blocks.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from llamesh.cli.failure import CommandError, Exit


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content. CommandError if the file is not regular or longer than `most` bytes; OSError if it cannot be read."""
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CommandError(f"{path} is no regular file", code=Exit.USAGE)
        content = file.read(most + 1)
    if len(content) > most:
        raise CommandError(f"{path} is too long: at most {most} bytes are read", code=Exit.USAGE)
    return content


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
