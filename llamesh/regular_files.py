"""Opens files that a person names, and checks those that are to be replaced, or linked into another folder.

Invariant: only regular files are read. A device such as /dev/zero has no end, and a pipe without a writer blocks. Only regular files are
replaced: a new file in the place of a device, a pipe or a link would take it away from all who use it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotRegularError(Exception):
    """The path names a folder, a device, a pipe or a socket. The message says that it is no regular file, and what it is."""

    def __init__(self, path: Path, mode: int) -> None:
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
        super().__init__(f"{path} is no regular file but {kind}")


class NotReplaceableError(Exception):
    """The path names something that a new file must not replace. `remedy` is the instruction for a person."""

    def __init__(self, words: str, remedy: str = "name a file") -> None:
        super().__init__(words)
        self.remedy = remedy


def check_replaceable(target: Path) -> None:
    """NotReplaceableError if there is anything but a regular file. OSError."""
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISREG(mode):
        return
    if not stat.S_ISLNK(mode):
        raise NotReplaceableError(str(NotRegularError(target, mode)))
    leads = Path(os.path.realpath(target))
    remedy = f"name the file itself: {leads}" if leads.is_file() else "name a file"
    raise NotReplaceableError(f"{target} is a link, which a new file would replace", remedy)


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading. NotRegularError, OSError."""
    try:
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 the caller closes it
    except OSError as error:
        # Neither a folder nor a socket can be opened so: EISDIR, ENXIO.
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise NotRegularError(path, path.stat().st_mode) from error
        raise
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISREG(mode):
        return file
    file.close()
    raise NotRegularError(path, mode)


def must_be_copied(error: OSError) -> bool:
    """Whether a hard link failed because there can be none: to another file system, on one without links, or to a file of another user."""
    return error.errno in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
