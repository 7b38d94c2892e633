"""A backup of a home: databases, settings, secrets, certificates and, if wanted, models, in one archive.

Tables in PostgreSQL are a dump in the archive, which the caller makes and restores (`tables`).

Invariant: each database is copied in a transaction of its own, while the mesh may run; the archive appears whole or not at all, for this
user only. Its first and last entry, which describe it, have a digest of their own, and the last has that of every other one. So a home is
restored whole or not at all, and only if there is none.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shlex
import shutil
import sqlite3
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from llamesh.cli.mesh import unfinished
from llamesh.disk_space import free_bytes
from llamesh.locations import make_private
from llamesh.private_files import new_private

FORMAT = 1
MANIFEST = "llamesh-backup.json"
END = "llamesh-backup.end"
"""Last entry of an archive: the SHA-256 of every file before it, by name. A reader of tar takes a damaged entry for the end."""
DIGEST = "LLAMESH.sha256"
"""Extended header (pax) of the manifest and the end: the SHA-256 of the entry."""
FOLDERS = ("secrets", "tls")
"""Copied as they are, beside `data` and the settings."""
MODELS = ("objects", "llm-models", "import")
"""The models that can be served, those that the Quant service has published, and the files that people have put in to import."""
_HANDED_OVER = ("import", "handed-over")
"""Links to files of users while a transfer reads them."""
TABLES = "postgres.dump"
"""The tables, if they are in PostgreSQL."""
_SETTINGS = "config.env"
_MAX_TEXT = 1 << 26
_ANOTHER_COPY = "use another copy of the backup"
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
    dump: Callable[[Path], bool] | None = None,
) -> Manifest:
    """Write the archive. ArchiveError if there is nothing to back up, or a database is damaged; OSError if a file fails.

    `dump` writes the tables of PostgreSQL to a file, if there are any, and says whether they stay out of the archive.
    """
    if not (home / "data").is_dir() and not (home / "secrets").is_dir():
        raise ArchiveError(f"{home} holds no mesh", "LLAMESH_HOME names another home")
    if target.is_dir():
        raise ArchiveError(f"{target} is a folder", f"name a file: {target / 'mesh.backup'}")
    with _work_folder(target, target.parent) as folder:
        tables = folder / TABLES
        elsewhere = dump is not None and dump(tables)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        manifest = Manifest(FORMAT, version, made, str(home), models, elsewhere)
        written = folder / "archive"
        with new_private(written) as file:
            # Store models uncompressed: quantised weights do not compress.
            with tarfile.open(fileobj=file, mode="w" if models else "w:gz", format=tarfile.PAX_FORMAT) as archive:
                _add_text(archive, MANIFEST, json.dumps(asdict(manifest)))
                files = _files(home, settings, folder, models=models)
                digests = {name: _add(archive, name, path) for name, path in files}
                if tables.exists():
                    digests[TABLES] = _add(archive, TABLES, tables)
                _add_text(archive, END, json.dumps(digests))
            file.flush()
            os.fsync(file.fileno())
        written.replace(target)
    return manifest


def restore(source: Path, home: Path, version: str, load: Callable[[Path, Path], None]) -> Manifest:
    """Make a home of an archive. ArchiveError if it is none, is too new, or there is a home already; OSError if it cannot be read.

    `load` is given a dump of tables, if there is one, and the home that is made; if it raises, there is no home.
    """
    # A link stays: the home is made where it points to.
    home = Path(os.path.realpath(home))
    others = {_OF_FILE_SYSTEM, unfinished.path_of(home, home).name}
    if home.exists() and any(entry.name not in others for entry in home.iterdir()):
        raise ArchiveError(
            f"{home} is not empty: a backup is restored where there is no mesh",
            f"set LLAMESH_HOME to a new folder, or move the old one away: mv {home} {home}.old",
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    # Another file system cannot be replaced by a folder: its content is moved in at the end.
    mounted = home.is_mount()
    with _work_folder(home, home if mounted else home.parent) as folder:
        made = folder / "home"
        made.mkdir(mode=0o700)
        manifest = _extract_all(source, made, version)
        if (made / TABLES).exists():
            load(made / TABLES, made)
            (made / TABLES).unlink()
        if mounted:
            for entry in made.iterdir():
                entry.rename(home / entry.name)
        else:
            if home.exists():
                home.rmdir()
            made.replace(home)
    return manifest


@contextmanager
def _work_folder(target: Path, parent: Path) -> Iterator[Path]:
    try:
        with unfinished.work_folder(target, parent) as folder:
            yield folder
    except unfinished.InUseError as error:
        raise ArchiveError(f"another backup or restore is making {target}", "wait until it has ended") from error


def _manifest(archive: tarfile.TarFile, source: Path, version: str) -> Manifest:
    first = archive.next()
    if first is None or first.name != MANIFEST:
        raise ArchiveError(f"{source} is no backup of llamesh", "name a file that `llamesh backup` wrote")
    text = _text(archive, first, source)
    try:
        manifest = Manifest(**json.loads(text))
        newer = manifest.format > FORMAT or _numbers(manifest.version) > _numbers(version)
    except (ValueError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{source} was made by another llamesh than {version}", "install that version") from error
    if newer:
        raise ArchiveError(
            f"{source} was made by llamesh {manifest.version}; this is {version}",
            f"pip install 'llamesh[mesh,engine]>={manifest.version}'",
        )
    return manifest


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _files(home: Path, settings: Path, folder: Path, *, models: bool) -> Iterator[tuple[str, Path]]:
    """Every file of the archive with its name. Copies of databases are made in `folder`."""
    for database in sorted((home / "data").glob("*.db")):
        copy = folder / database.name
        _copy(database, copy)
        yield f"data/{database.name}", copy
        copy.unlink()
    if settings.is_file():
        yield _SETTINGS, settings
    for folder in (*FOLDERS, *(MODELS if models else ())):
        for path in sorted((home / folder).rglob("*")):
            name = path.relative_to(home)
            if path.is_file() and not path.is_symlink() and name.parts[:2] != _HANDED_OVER:
                yield name.as_posix(), path


def _copy(database: Path, copy: Path) -> None:
    """Copy a database in one transaction, and check the copy. ArchiveError if the database is damaged or cannot be read."""
    try:
        with closing(sqlite3.connect(database, timeout=30)) as now, closing(sqlite3.connect(copy)) as then:
            now.backup(then)
            found = str(then.execute("PRAGMA quick_check(1)").fetchone()[0])
            if found != "ok":
                raise sqlite3.DatabaseError(" ".join(found.split()))
    except sqlite3.OperationalError as error:
        remedy = "see that there is space, and that this user may read it; then run `llamesh backup` again"
        raise ArchiveError(f"{database} cannot be copied: {error}", remedy) from error
    except sqlite3.DatabaseError as error:
        remedy = f"`llamesh down`, then restore the backup of before, or repair it: sqlite3 {shlex.quote(str(database))} .recover"
        raise ArchiveError(f"{database} is damaged: {error}", remedy) from error


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
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.pax_headers = len(content), 0o600, {DIGEST: hashlib.sha256(content).hexdigest()}
    archive.addfile(entry, io.BytesIO(content))


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo, source: Path) -> bytes:
    """Read what `_add_text` has added. ArchiveError if it has changed."""
    file = archive.extractfile(entry)
    content = b"" if file is None else file.read(_MAX_TEXT)
    if hashlib.sha256(content).hexdigest() != entry.pax_headers.get(DIGEST):
        raise ArchiveError(f"{source} is damaged: its {entry.name} is not as it was written", _ANOTHER_COPY)
    return content


def _extract_all(source: Path, home: Path, version: str) -> Manifest:
    """Extract every file. ArchiveError if one is missing, changed or too many."""
    found: dict[str, str] = {}
    expected: object = None
    try:
        with tarfile.open(source, "r:*") as archive:
            manifest = _manifest(archive, source, version)
            for member in archive:
                if member.name == END:
                    expected = json.loads(_text(archive, member, source))
                elif member.name != MANIFEST:
                    found[member.name] = _extract(archive, member, home)
            # Behind the last entry gzip has a checksum, which is compared only by reading on.
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        # The error's words are those of tarfile about its attempts, and say nothing about the file.
        raise ArchiveError(f"{source} is no backup of llamesh, or is damaged", _ANOTHER_COPY) from error
    if found != expected:
        raise ArchiveError(f"{source} is damaged: it does not hold what was backed up", _ANOTHER_COPY)
    return manifest


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, home: Path) -> str:
    """Extract one file. An untrusted archive can write nothing outside the home, and no link. Returns the SHA-256."""
    name = PurePosixPath(member.name)
    allowed = name.parts[:1] and name.parts[0] in {"data", _SETTINGS, TABLES, *MODELS, *FOLDERS}
    if not member.isreg() or name.is_absolute() or ".." in name.parts or not allowed:
        raise ArchiveError(
            f"it holds {member.name!r}, which no backup of llamesh does", "restore only backups that you trust"
        )
    free = free_bytes(home)
    if member.size > free:
        raise ArchiveError(
            f"{member.name} has {member.size} bytes, and {free} are free for the home",
            "free space, or set LLAMESH_HOME to a folder of a larger file system",
        )
    content = archive.extractfile(member)
    assert content is not None, "a regular file has content"
    target = home.joinpath(*name.parts)
    for folder in reversed([parent for parent in target.parents if parent.is_relative_to(home)]):
        make_private(folder)
    digested = _Digested(content)
    with new_private(target) as file:
        shutil.copyfileobj(digested, file, 1 << 20)
    return digested.sha256.hexdigest()
