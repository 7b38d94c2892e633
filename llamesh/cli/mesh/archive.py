"""A backup of a home: databases, settings, secrets, certificates and, if wanted, models, in one archive.

Tables in PostgreSQL are a dump in the archive, which the caller makes and restores (`tables`).

Invariant: each database is copied in a transaction of its own, while the mesh may run; the archive appears whole or not at all, for this
user only. Its last entry has the digest of every other one, so a home is restored whole or not at all, and only if there is none.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from llamesh.disk_space import free_bytes
from llamesh.locations import make_private

FORMAT = 1
MANIFEST = "llamesh-backup.json"
END = "llamesh-backup.end"
"""Last entry of an archive: the SHA-256 of every entry before it, by name. A reader of tar takes a damaged entry for the end."""
FOLDERS = ("secrets", "tls")
"""Copied as they are, beside `data` and the settings."""
MODELS = ("objects", "llm-models", "import")
"""The models that can be served, those that the Quant service has published, and the files that people have put in to import."""
_HANDED_OVER = ("import", "handed-over")
"""Links to files of users while a transfer reads them."""
TABLES = "postgres.dump"
"""The tables, if they are in PostgreSQL."""
_SETTINGS = "config.env"
_LARGEST_END = 1 << 26
_OF_FILE_SYSTEM = "lost+found"
"""Stands in every new file system of ext4."""


class ArchiveError(Exception):
    """A backup cannot be made or restored; `remedy` says what to do."""

    def __init__(self, words: str, remedy: str = "") -> None:
        super().__init__(words)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Manifest:
    """Description of an archive, stored in it."""

    format: int
    version: str
    """Version of llamesh that made it."""
    made: str
    home: str
    models: bool
    tables_elsewhere: bool = False
    """The tables are in PostgreSQL and were not dumped."""


def write(
    home: Path,
    target: Path,
    version: str,
    settings: Path,
    *,
    models: bool,
    dump: Path | None = None,
    tables_elsewhere: bool = False,
) -> Manifest:
    """Write the archive; `dump` has the tables of PostgreSQL. ArchiveError if there is nothing to back up; OSError if a file fails."""
    if not (home / "data").is_dir() and not (home / "secrets").is_dir():
        raise ArchiveError(f"{home} holds no mesh", "LLAMESH_HOME names another home")
    made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    manifest = Manifest(FORMAT, version, made, str(home), models, tables_elsewhere)
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            # Store models uncompressed: quantised weights do not compress.
            with tarfile.open(fileobj=file, mode="w" if models else "w:gz", format=tarfile.PAX_FORMAT) as archive:
                _add_text(archive, MANIFEST, json.dumps(asdict(manifest)))
                digests = {name: _add(archive, name, path) for name, path in _files(home, settings, models=models)}
                if dump is not None:
                    digests[TABLES] = _add(archive, TABLES, dump)
                _add_text(archive, END, json.dumps(digests))
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(target)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return manifest


def restore(source: Path, home: Path, version: str, load: Callable[[Path, Path], None]) -> Manifest:
    """Make a home of an archive. ArchiveError if it is none, is too new, or there is a home already; OSError if it cannot be read.

    `load` is given a dump of tables, if there is one, and the home that is made; if it raises, there is no home.
    """
    if home.exists() and any(entry.name != _OF_FILE_SYSTEM for entry in home.iterdir()):
        raise ArchiveError(
            f"{home} is not empty: a backup is restored where there is no mesh",
            f"set LLAMESH_HOME to a new folder, or move the old one away: mv {home} {home}.old",
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    # Another file system cannot be replaced by a folder: its content is moved in at the end.
    mounted = home.is_mount()
    unfinished = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home if mounted else home.parent))
    try:
        with tarfile.open(source, "r:*") as archive:
            manifest = _manifest(archive, source, version)
            _extract_all(archive, source, unfinished)
        if (unfinished / TABLES).exists():
            load(unfinished / TABLES, unfinished)
            (unfinished / TABLES).unlink()
        if mounted:
            for entry in unfinished.iterdir():
                entry.rename(home / entry.name)
        else:
            if home.exists():
                home.rmdir()
            unfinished.replace(home)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ArchiveError(f"{source} is no backup of llamesh, or is damaged: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def _manifest(archive: tarfile.TarFile, source: Path, version: str) -> Manifest:
    first = archive.next()
    content = archive.extractfile(first) if first is not None and first.name == MANIFEST else None
    if content is None:
        raise ArchiveError(f"{source} is no backup of llamesh")
    try:
        manifest = Manifest(**json.loads(content.read(1 << 16)))
    except (ValueError, TypeError) as error:
        raise ArchiveError(f"{source} was made by another llamesh than {version}", "install that version") from error
    if manifest.format > FORMAT or _numbers(manifest.version) > _numbers(version):
        raise ArchiveError(
            f"{source} was made by llamesh {manifest.version}; this is {version}",
            f"pip install 'llamesh[mesh,engine]>={manifest.version}'",
        )
    return manifest


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _files(home: Path, settings: Path, *, models: bool) -> Iterator[tuple[str, Path]]:
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=home) as copies:
        for database in sorted((home / "data").glob("*.db")):
            copy = Path(copies) / database.name
            with closing(sqlite3.connect(database, timeout=30)) as now, closing(sqlite3.connect(copy)) as then:
                now.backup(then)
            yield f"data/{database.name}", copy
    if settings.is_file():
        yield _SETTINGS, settings
    for folder in (*FOLDERS, *(MODELS if models else ())):
        for path in sorted((home / folder).rglob("*")):
            name = path.relative_to(home)
            if path.is_file() and not path.is_symlink() and name.parts[:2] != _HANDED_OVER:
                yield name.as_posix(), path


class _Digested:
    """A file whose digest is computed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        return content


def _add(archive: tarfile.TarFile, name: str, path: Path) -> str:
    """Add a file. Returns its SHA-256."""
    with path.open("rb") as file:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = os.fstat(file.fileno()).st_size, 0o600, int(path.stat().st_mtime)
        content = _Digested(file)
        archive.addfile(entry, content)
        return content.sha256.hexdigest()


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), 0o600
    archive.addfile(entry, io.BytesIO(text.encode()))


def _extract_all(archive: tarfile.TarFile, source: Path, home: Path) -> None:
    """Extract every file. ArchiveError if one is missing, changed or too many."""
    found: dict[str, str] = {}
    expected: object = None
    for member in archive:
        if member.name == END and member.isreg() and (content := archive.extractfile(member)) is not None:
            expected = _digests(content.read(_LARGEST_END))
        elif member.name != MANIFEST:
            found[member.name] = _extract(archive, member, home)
    if found != expected:
        raise ArchiveError(
            f"{source} is damaged: it does not hold what was backed up", "use another copy of the backup"
        )


def _digests(text: bytes) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, home: Path) -> str:
    """Extract one file. An untrusted archive can write nothing outside the home, and no link. Returns the SHA-256."""
    name = PurePosixPath(member.name)
    allowed = name.parts[:1] and name.parts[0] in {"data", _SETTINGS, TABLES, *MODELS, *FOLDERS}
    if not member.isreg() or name.is_absolute() or ".." in name.parts or not allowed:
        raise ArchiveError(f"it holds {member.name!r}, which no backup of llamesh does")
    free = free_bytes(home)
    if member.size > free:
        raise ArchiveError(
            f"{member.name} has {member.size} bytes, and {free} are free at {home.parent}",
            "free space, or set LLAMESH_HOME to a folder of a larger file system",
        )
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    target = home.joinpath(*name.parts)
    for folder in reversed([parent for parent in target.parents if parent.is_relative_to(home)]):
        make_private(folder)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    digested = _Digested(content)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(digested, file, 1 << 20)
    return digested.sha256.hexdigest()
