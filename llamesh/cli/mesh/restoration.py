"""Makes a home of a backup, which may be damaged or hostile.

Invariant: a home is restored whole or not at all, and only if there is none; a home that is filled in place has a mark until it is whole
(`restore_mark`). Files are on the disk before the home counts, so a power failure leaves no home of empty ones. A restore writes nothing
outside the home, and makes no link. Its memory, its number of files and the depth of its folders are bounded, whatever the archive holds.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from llamesh.cli.mesh import restore_mark, settings_file, unfinished
from llamesh.cli.mesh.archive import (
    DIGEST,
    END,
    FOLDERS,
    FORMAT,
    MANIFEST,
    MAX_DEPTH,
    MAX_FILES,
    MODELS,
    SETTINGS,
    TABLES,
    ArchiveError,
    Digested,
    Manifest,
    work_folder,
)
from llamesh.cli.mesh.archive_headers import EntryHeader, ForeignHeaderError
from llamesh.cli.mesh.archive_listing import FileListing
from llamesh.cli.mesh.unfinished import remove
from llamesh.disk_space import RESERVE_BYTES, disk_space
from llamesh.durability import sync, sync_all
from llamesh.locations import make_private
from llamesh.private_files import new_private
from llamesh.regular_files import NotRegularError, open_regular

_MAX_MANIFEST = 1 << 16
_ENTRIES = (SETTINGS, TABLES, "data", *FOLDERS, *MODELS)
"""What a restore may write into a home."""
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,40}")
_MADE = re.compile(r"[0-9TZ:-]{0,40}")
_GZIP = b"\x1f\x8b"
_ANOTHER_COPY = "use another copy of the backup"
_ONLY_TRUSTED = "restore only backups that you trust"
_OF_FILE_SYSTEM = "lost+found"
"""Stands in every new file system of ext4."""
_OF_NAMES = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}
"""Failures to make a file in a new folder that are due to its name and those before it."""
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError, RecursionError)
"""What tarfile raises for a damaged archive: also for a header that is no number, is too large, or follows too many of its kind."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has made."""

    manifest: Manifest
    moved: settings_file.Moved
    """Settings whose values lay below the home of the backup, and lie below the new one now if they could be changed."""


def restore(source: Path, home: Path, version: str, load: Callable[[Path, Path], None]) -> Restored:
    """Make a home of an archive. ArchiveError if it is none, is too new, or there is a home already; OSError if it cannot be read.

    `load` is given a dump of tables, if there is one, and the home that is made; if it raises, there is no home.
    """
    # A link stays: the home is made where it points to.
    place = Path(os.path.realpath(home))
    _check_free(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    # A folder that exists is filled: it may be a mount point, or belong to a service manager, and nothing can take its place.
    exists = place.exists()
    if exists:
        make_private(place)
    with work_folder(place, place if exists else place.parent) as folder:
        # Another restore may have ended meanwhile.
        _check_free(place)
        if exists:
            _clear(place)
        made = folder / "home"
        made.mkdir(mode=0o700)
        manifest = _extract_all(source, made, version)
        moved = settings_file.move(made / SETTINGS, manifest.home, home, manifest.paths)
        if (made / TABLES).exists():
            load(made / TABLES, made)
            (made / TABLES).unlink()
        sync_all(made)
        if exists:
            _fill(place, made)
        else:
            made.rename(place)
            sync(place.parent)
    return Restored(manifest, moved)


def _check_free(home: Path) -> None:
    """ArchiveError if the home holds anything but the work of a restore that was killed."""
    others = {_OF_FILE_SYSTEM, unfinished.path_of(home, home).name}
    if restore_mark.path_of(home).exists():
        others |= {restore_mark.path_of(home).name, *_ENTRIES}
    if home.exists() and any(entry.name not in others for entry in home.iterdir()):
        raise ArchiveError(
            f"{home} is not empty: a backup is restored where there is no mesh",
            f"set LLAMESH_HOME to a new folder, or move the old one away: mv {shlex.join([str(home), f'{home}.old'])}",
        )


def _clear(home: Path) -> None:
    """Remove what a restore that was killed has written to the home."""
    mark = restore_mark.path_of(home)
    if mark.exists():
        for name in _ENTRIES:
            remove(home / name)
        mark.unlink()


def _fill(home: Path, made: Path) -> None:
    """Move what was made into the home, which counts from the last step on."""
    mark = restore_mark.path_of(home)
    mark.touch(mode=0o600)
    sync(home)
    for entry in made.iterdir():
        entry.rename(home / entry.name)
    sync(home)
    mark.unlink()
    sync(home)


def _extract_all(source: Path, home: Path, version: str) -> Manifest:
    """Extract every file. ArchiveError if one is missing, changed or too many."""
    with _opened(source) as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:gz" if packed else "r:", tarinfo=EntryHeader) as archive:
                manifest = _manifest(archive, source, version)
                _extract_files(archive, source, home)
                # Behind the last entry gzip has a checksum, which is compared only by reading on.
                while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                    pass
        except ForeignHeaderError as error:
            raise ArchiveError(f"{source} has a header that no backup of llamesh has", _ONLY_TRUSTED) from error
        except _DAMAGE as error:
            # The error's words are those of tarfile about its attempts, and say nothing about the file.
            raise ArchiveError(f"{source} is no backup of llamesh, or is damaged", _ANOTHER_COPY) from error
    return manifest


def _opened(source: Path) -> IO[bytes]:
    """Open a backup. ArchiveError for a pipe, a device or a socket: a backup is read from its beginning twice."""
    try:
        return open_regular(source)
    except NotRegularError as error:
        raise ArchiveError(
            f"{error}: a backup can be read only from a file",
            "write the backup to a file, and restore that file",
        ) from error


def _manifest(archive: tarfile.TarFile, source: Path, version: str) -> Manifest:
    first = archive.next()
    if first is None or first.name != MANIFEST:
        raise ArchiveError(f"{source} is no backup of llamesh", "name a file that `llamesh backup` wrote")
    text = _text(archive, first, source)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _changed(source, MANIFEST) from error
    try:
        manifest = Manifest(**fields)
        newer = manifest.format > FORMAT
    except TypeError as error:
        raise ArchiveError(f"{source} was made by another llamesh than {version}", "install that version") from error
    if not _matches(_VERSION, manifest.version) or not _matches(_MADE, manifest.made):
        raise _changed(source, MANIFEST)
    if newer or _numbers(manifest.version) > _numbers(version):
        raise ArchiveError(
            f"{source} was made by llamesh {manifest.version}; this is {version}",
            f"install llamesh {manifest.version} or later, then restore again",
        )
    return manifest


def _matches(form: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo, source: Path) -> bytes:
    """Read a manifest. ArchiveError if it has changed."""
    content = _content(archive, entry, source).read() if entry.size <= _MAX_MANIFEST else b""
    if hashlib.sha256(content).hexdigest() != entry.pax_headers.get(DIGEST):
        raise _changed(source, entry.name)
    return content


def _changed(source: Path, name: str) -> ArchiveError:
    return ArchiveError(f"{source} is damaged: its {name} is not as it was written", _ANOTHER_COPY)


def _foreign(source: Path, name: str) -> ArchiveError:
    shown = name if len(name) <= 80 else f"{name[:80]}..."
    return ArchiveError(f"{source} holds {shown!r}, which no backup of llamesh does", _ONLY_TRUSTED)


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo, source: Path) -> IO[bytes]:
    """Content of a regular file. ArchiveError for every other kind of entry."""
    content = archive.extractfile(entry) if entry.type == tarfile.REGTYPE and not entry.issparse() else None
    # An extended header may have another size than the header itself.
    if content is None or entry.size < 0:
        raise _foreign(source, entry.name)
    return content


def _extract_files(archive: tarfile.TarFile, source: Path, home: Path) -> None:
    """Extract what follows the manifest. ArchiveError if the end does not list exactly these files."""
    listing, files = FileListing(), 0
    while (member := archive.next()) is not None and member.name != END:
        if files >= MAX_FILES + 1:
            raise ArchiveError(f"{source} holds more than {MAX_FILES} files, which no backup does", _ONLY_TRUSTED)
        listing.add(member.name, _extract(archive, member, source, home))
        files += 1
        # tarfile keeps every header, of up to MAX_HEADER bytes.
        archive.members.clear()  # type: ignore[attr-defined]
    if member is None or _digest(archive, member, source) != listing.sha256() or archive.next() is not None:
        raise ArchiveError(f"{source} is damaged: it does not hold what was backed up", _ANOTHER_COPY)


def _digest(archive: tarfile.TarFile, end: tarfile.TarInfo, source: Path) -> str:
    """SHA-256 of the last entry, read piece by piece; empty if it is not the one that the entry names."""
    read = Digested(_content(archive, end, source))
    while read.read(1 << 20):
        pass
    found = read.sha256.hexdigest()
    return found if found == end.pax_headers.get(DIGEST) else ""


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, source: Path, home: Path) -> str:
    """Extract one file. An untrusted archive can write nothing outside the home, and no link. Returns the SHA-256."""
    if not _allowed(member.name):
        raise _foreign(source, member.name)
    content = _content(archive, member, source)
    space = disk_space(home)
    is_model = PurePosixPath(member.name).parts[0] in MODELS
    room, free = space.free, "free for the home"
    if is_model:
        room, free = space.usable, f"free for models ({RESERVE_BYTES >> 20} MiB stay free)"
    if member.size > room:
        raise ArchiveError(
            f"{member.name} has {member.size} bytes, and {room} are {free}",
            "free space, or set LLAMESH_HOME to a folder of a larger file system",
        )
    target = home / member.name
    try:
        for folder in reversed([parent for parent in target.parents if parent.is_relative_to(home)]):
            make_private(folder)
        file = new_private(target)
    except OSError as error:
        if error.errno in _OF_NAMES:
            raise _foreign(source, member.name) from error
        raise
    digested = Digested(content)
    with file:
        shutil.copyfileobj(digested, file, 1 << 20)
    return digested.sha256.hexdigest()


def _allowed(name: str) -> bool:
    """Whether a backup may hold a file of this name."""
    path = PurePosixPath(name)
    if name in (SETTINGS, TABLES):
        return True
    if "\0" in name or path.as_posix() != name or ".." in path.parts or not 2 <= len(path.parts) <= MAX_DEPTH:
        return False
    return path.parts[0] in {*MODELS, *FOLDERS} or (path.match("data/*.db") and len(path.parts) == 2)
