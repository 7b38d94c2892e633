"""Writes files that only this user may read.

Invariant: a file appears whole or not at all, and nothing that another user has put into the folder is followed or written to. A process
that is killed while it writes leaves only a hidden file, whose name ends in SUFFIX.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

SUFFIX = ".tmp"


def write_private(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file in one step, readable for this user only. Raises OSError and then keeps the earlier file.

    `durable`: the content survives a power failure. A file that counts only while its writer runs needs no such wait for the disk.
    """
    with _written(path, content, durable=durable) as unfinished:
        unfinished.replace(path)


def create_private(path: Path, content: bytes) -> None:
    """Write a file in one step unless there is one: of several processes the first succeeds. Raises OSError."""
    # Unlike a rename, a link fails if another process has created the file.
    with _written(path, content, durable=True) as unfinished, suppress(FileExistsError):
        path.hardlink_to(unfinished)


def new_private(path: Path) -> IO[bytes]:
    """Open a new file for writing. FileExistsError if there is anything of its name, a link too."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


@contextmanager
def _written(path: Path, content: bytes, *, durable: bool) -> Iterator[Path]:
    """Yield a file with the content next to `path` under a temporary name, which the caller may rename; removed at the end."""
    # The name is random and new: at a known name, a link or a file of another user could be written to.
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}{SUFFIX}")
    try:
        with new_private(unfinished) as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield unfinished
    finally:
        unfinished.unlink(missing_ok=True)
