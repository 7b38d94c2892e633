"""Models from files of this machine, in folders that the operator named.

Invariant: no file outside of these folders is read. The path is resolved and checked, the file is opened without following a final link,
and the opened file is checked again, so a link that is swapped in between has no effect. Only a file that is missing or may not be read is
an error for good; what the machine or a network disk lacks for a moment is tried again.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.download.sources.named_parts import NamedParts
from services.download.sources.source import (
    MAX_CHUNK,
    CheckedSource,
    SourceChangedError,
    SourceError,
    SourceObject,
    SourceRefusedError,
)

MAX_NAMES = 10_000
"""Maximum number of entries of a folder that are read."""
_FOR_GOOD = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENXIO,
}
"""Errors of the operating system that another try meets again: no such file, or none that may be read. ENXIO: a socket."""


class FileSource(NamedParts):
    """Reads regular files below the allowed directories."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = [directory.absolute() for directory in directories]

    def check(self, source: str) -> CheckedSource:
        """See Source. Only the file's name is shown, because not every caller may know the paths of this machine."""
        name = self._resolve(source).name
        return CheckedSource(source, name, name)

    @asynccontextmanager
    async def open(self, source: str) -> AsyncIterator[SourceObject]:
        """See Source."""
        path = self._resolve(source)
        fd = self._open(path)
        try:
            stats = os.fstat(fd)
            yield SourceObject(
                size=stats.st_size,
                name=path.name,
                etag=f"{stats.st_ino}-{stats.st_size}-{stats.st_mtime_ns}",
                chunks=_read(fd, path, stats, 0, stats.st_size),
                read=partial(_read, fd, path, stats),
                local=True,
            )
        finally:
            os.close(fd)

    def names(self, source: str) -> list[str]:
        """Return the names of the files in a folder, at most MAX_NAMES. Blocks. Raises SourceError."""
        folder = self._resolve(source)
        try:
            with os.scandir(folder) as entries:
                return [entry.name for entry in islice(entries, MAX_NAMES) if entry.is_file()]
        except OSError as error:
            raise _failure(f"cannot list {folder.name}", error) from error

    def _resolve(self, source: str) -> Path:
        path = _path(source)
        # realpath and not Path.resolve(strict=True): the answer must not reveal whether a file outside exists.
        resolved = Path(os.path.realpath(path))
        for directory in self._directories:
            if resolved.is_relative_to(os.path.realpath(directory)):
                return resolved
        raise SourceRefusedError(
            f"{path.name} lies in no folder that models may be imported from: put it into LLAMESH_HOME/import, or have an administrator"
            " name its folder in LLAMESH_IMPORT_DIRS",
            rule="folder",
        )

    def _open(self, path: Path) -> int:
        try:
            # O_NONBLOCK: opening a pipe must not wait for its writer.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _failure(f"cannot open {path.name}", error) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise SourceRefusedError(f"{path.name} is not a regular file", rule="regular file")
            self._check_opened(fd, path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_opened(self, fd: int, path: Path) -> None:
        """Check the path of the opened file, if the kernel reports it."""
        try:
            opened = Path(f"/proc/self/fd/{fd}").readlink()
        except OSError:
            return
        if opened != path:
            raise SourceRefusedError(f"{path.name} changed while it was opened", rule="folder")


def _failure(what: str, error: OSError) -> SourceError:
    for_good = error.errno in _FOR_GOOD
    return SourceError(f"{what}: {error.strerror}", status=404 if for_good else 0, transient=not for_good)


def _path(source: str) -> Path:
    if source.startswith("file:"):
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            raise SourceRefusedError("a file URL has only a path: file:///folder/model.gguf", rule="file URL")
        text = unquote(parts.path)
    else:
        text = source
    if "\0" in text or not text.startswith("/"):
        raise SourceRefusedError("the path of a file must be absolute", rule="absolute path")
    return Path(text)


async def _read(fd: int, path: Path, opened: os.stat_result, offset: int, length: int) -> AsyncIterator[bytes]:
    """See RangedRead."""
    done = 0
    while done < length:
        try:
            block = await asyncio.to_thread(os.pread, fd, min(MAX_CHUNK, length - done), offset + done)
        except OSError as error:
            raise _failure(f"cannot read {path.name}", error) from error
        if not block:
            break
        done += len(block)
        yield block
    now = os.fstat(fd)
    if done != length or now.st_size != opened.st_size or now.st_mtime_ns != opened.st_mtime_ns:
        raise SourceChangedError(
            f"{path.name} changed while it was read: {opened.st_size} bytes at first, {now.st_size} at the end",
            opened=f"{opened.st_size} bytes",
            found=f"{now.st_size} bytes",
        )
