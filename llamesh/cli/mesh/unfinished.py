"""The folder in which a backup or a restore makes its result: `.NAME.unfinished` beside the result, or in it.

Invariant: a process uses the folder only while it holds the lock (flock) of a file in it. The kernel releases the lock of a killed process,
so the next backup or restore removes what that process left, and never what a running one uses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from llamesh import locks

_LOCK = "lock"
_MAX_ATTEMPTS = 100
"""Maximum number of attempts to lock a new folder: another process may remove the folder between its creation and the lock."""


class InUseError(Exception):
    """Another process makes the same result."""


def path_of(target: Path, parent: Path) -> Path:
    """Return the path of the folder for a target."""
    return parent / f".{target.name}.unfinished"


@contextlib.contextmanager
def work_folder(target: Path, parent: Path) -> Iterator[Path]:
    """Give an empty folder in `parent` that only this process uses, and remove it at the end. InUseError, OSError."""
    folder = path_of(target, parent)
    descriptor = _locked(folder)
    try:
        _empty(folder)
        yield folder
    finally:
        with contextlib.suppress(OSError):
            _empty(folder)
            # Remove the lock last: without it another process may use the folder.
            (folder / _LOCK).unlink()
            folder.rmdir()
        os.close(descriptor)


def _locked(folder: Path) -> int:
    """Make the folder if it is missing, and lock it."""
    # If the parent is missing, the error names the folder that the user has given.
    folder.parent.stat()
    for _ in range(_MAX_ATTEMPTS):
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            _check_own(folder)
            descriptor = locks.open_file(folder / _LOCK)
        except FileNotFoundError:
            continue
        if not locks.take(descriptor):
            os.close(descriptor)
            raise InUseError
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), (folder / _LOCK).stat()):
                return descriptor
        os.close(descriptor)
    raise InUseError


def _check_own(folder: Path) -> None:
    """PermissionError if another user made the folder, or a link in its place: the backup holds secrets."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user: remove it")


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds; a link, but not what it points to. Idempotent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != _LOCK:
            remove(path)
