"""A folder of LLAMESH_HOME/import/handed-over: brings the files of a command there, and removes those that no other command has used.

The same files always have the same folder, so that they are the same source for the mesh. Hence commands may share a folder, one after the
other or at the same time. They take turns by a lock (flock) on the folder: `place` creates the folder or leaves a mark in the one that it
finds, and `remove` removes only what this command has created and no other has marked. The download service removes what remains, and does
not touch a folder while a command holds its lock.

Invariant: a file of a folder is complete as soon as it has its name, and is never replaced: the mesh may be reading it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from llamesh import locks
from llamesh.disk_space import disk_space
from llamesh.file_holds import RemovalLock
from llamesh.regular_files import must_be_copied
from llamesh.sizes import size

_LARGE = 256 * 2**20
"""Size in bytes from which a copy is announced, because it takes long."""
_SHARED = ".shared"
"""Name of the mark of a second command. It also tells the download service that the folder was used a moment ago."""


class HandedFolder:
    """A folder in which the mesh finds the files of a command. `announce` gets a line before a large file is copied."""

    def __init__(self, path: Path, *, copies: bool = True, announce: Callable[[str], object] = lambda _: None) -> None:
        """Without `copies`, a file that cannot be linked is an OSError."""
        self._path = path
        self._copies = copies
        self._announce = announce
        self._created = False

    def place(self, files: Mapping[str, Path]) -> None:
        """Bring files, by their paths in the folder, to the mesh: as links, or as copies if they cannot be linked.

        Waits while another command brings the same files. Raises OSError, before the first copy if there is no room for all of them; what
        this call has created is removed then.
        """
        with _locked(self._path):
            self._created = not any(self._path.iterdir())
            try:
                if not self._created:
                    (self._path / _SHARED).touch(mode=0o600)
                places = {self._path / name: file.resolve() for name, file in files.items()}
                copied = {target: path for target, path in places.items() if not _linked(path, target)}
                if copied and not self._copies:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                _check_room(self._path, copied.values())
                for target, path in copied.items():
                    self._tell(path)
                    _copy_whole(path, target)
            except BaseException:
                self._remove_created()
                raise

    def remove(self) -> None:
        """Remove the folder if this command has created it and no other command has used it. A failure is ignored."""
        lock = RemovalLock.of(self._path)
        if lock is None:
            return
        try:
            if not (self._path / _SHARED).exists():
                self._remove_created()
        finally:
            lock.end()

    def _tell(self, path: Path) -> None:
        length = path.stat().st_size
        if length >= _LARGE:
            self._announce(f"copying {path.name} ({size(length)}) to the disk of the mesh")

    def _remove_created(self) -> None:
        from shutil import rmtree

        if self._created:
            rmtree(self._path, ignore_errors=True)
            with suppress(OSError):
                self._path.parent.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create a folder if it is missing, and lock it. Raises OSError."""
    while True:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            # Another command has removed the folder or its parent meanwhile.
            continue
        try:
            locks.wait(fd)
            # Another command may have removed the folder while this one waited.
            if locks.names(folder, fd):
                yield
                return
        finally:
            os.close(fd)


def _linked(path: Path, target: Path) -> bool:
    """Link a file. Return False if it has to be copied. A file that is there already has the same content."""
    if target.exists():
        return True
    target.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        target.hardlink_to(path)
    except OSError as error:
        if not must_be_copied(error):
            raise
        return False
    return True


def _check_room(folder: Path, files: Iterable[Path]) -> None:
    """Raise OSError (ENOSPC) unless copies of files fit into the usable bytes of the disk of a folder."""
    needed = sum(file.stat().st_size for file in files)
    usable = disk_space(folder).usable
    if needed > usable:
        raise OSError(errno.ENOSPC, f"copies take {size(needed)}, and its disk has {size(usable)} free for models")


def _copy_whole(path: Path, target: Path) -> None:
    """Copy a file, which has its name once it is complete."""
    unfinished = target.with_name(f"{target.name}.part")
    try:
        _copy(path, unfinished)
        unfinished.rename(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _copy(path: Path, target: Path) -> None:
    """Copy a file; the file system shares the blocks if it can."""
    with path.open("rb") as source, target.open("wb") as copy:
        try:
            while os.copy_file_range(source.fileno(), copy.fileno(), 2**30):
                pass
        except (AttributeError, OSError):
            source.seek(0)
            copy.seek(0)
            copy.truncate()
            from shutil import copyfileobj

            copyfileobj(source, copy, 2**20)
