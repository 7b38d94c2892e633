"""Opens files that a person names.

Invariant: only regular files are read. A device such as /dev/zero has no end, and a pipe without a writer blocks.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO


class NotRegularError(Exception):
    """The path names a folder, a device, a pipe or a socket."""


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading. NotRegularError, OSError."""
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 the caller closes it
    except OSError as error:
        # Neither a folder nor a socket can be opened so: EISDIR, ENXIO.
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise NotRegularError from error
        raise
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise NotRegularError


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
