"""Writes files that only this user may read.

Invariant: a file appears whole or not at all, and nothing that another user has put into the folder is followed or written to.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Write a file in one step, readable for this user only. Raises OSError."""
    # Imported late: commands that write nothing must not pay for it.
    import tempfile

    # A name that nobody can guess, made new: a link or a file of another user at a known name would be written to.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
