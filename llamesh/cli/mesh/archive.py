"""Writes a backup of a home: databases, settings, secrets, certificates and, if wanted, models, in one archive (`restoration` reads it).

Tables in PostgreSQL are a dump in the archive, which the caller makes (`tables`).

Invariant: each database is copied in a transaction of its own, while the mesh may run; the archive appears whole or not at all, for this
user only. Its first and last entry, which describe it, have a digest of their own, and the last has that of every other one. Nothing is
written that `restoration` refuses.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from llamesh import regular_files
from llamesh.cli.mesh import restore_mark, settings_file, unfinished
from llamesh.durability import sync
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
_UNFINISHED = {("import", "handed-over"), ("objects", "staging"), ("llm-models", "staging")}
"""Folders of models that cannot be served yet: links to files of users while a transfer reads them, and objects that are being written.
A file of an object in parts has its final size from the beginning."""
TABLES = "postgres.dump"
"""The tables, if they are in PostgreSQL."""
SETTINGS = "config.env"
MAX_FILES = 50_000
MAX_DEPTH = 32
"""Parts of the path of a file below the home."""


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
    paths: Sequence[str] = ()
    """Further paths of the home, which go through links."""


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
    try:
        restore_mark.check(home)
    except restore_mark.HalfRestoredError as error:
        raise ArchiveError(str(error), error.remedy) from error
    if not (home / "data").is_dir() and not (home / "secrets").is_dir():
        raise ArchiveError(f"{home} holds no mesh", "LLAMESH_HOME names another home")
    check_replaceable(target)
    with work_folder(target, target.parent) as folder:
        tables = folder / TABLES
        elsewhere = dump is not None and dump(tables)
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        paths = settings_file.paths_of(home, settings)
        manifest = Manifest(FORMAT, version, made, str(home), models, elsewhere, paths)
        written = folder / "archive"
        with new_private(written) as file:
            # Store models uncompressed: quantised weights do not compress.
            with tarfile.open(fileobj=file, mode="w" if models else "w:gz", format=tarfile.PAX_FORMAT) as archive:
                _add_text(archive, MANIFEST, json.dumps(asdict(manifest)))
                digests: dict[str, str] = {}
                for name, path in _files(home, settings, folder, models=models):
                    _check_bounds(home, name, len(digests))
                    digests[name] = _add(archive, name, path)
                if tables.exists():
                    digests[TABLES] = _add(archive, TABLES, tables)
                _add_text(archive, END, json.dumps(digests))
            file.flush()
            os.fsync(file.fileno())
        check_replaceable(target)
        written.replace(target)
        sync(target.parent)
    return manifest


def check_replaceable(target: Path) -> None:
    """ArchiveError if there is anything but a regular file: a backup appears whole or not at all, so it cannot be written to a device."""
    try:
        regular_files.check_replaceable(target)
    except regular_files.NotReplaceableError as error:
        folder = target.is_dir() and not target.is_symlink()
        raise ArchiveError(str(error), f"name a file: {target / 'mesh.backup'}" if folder else error.remedy) from error


@contextmanager
def work_folder(target: Path, parent: Path) -> Iterator[Path]:
    """Give the folder in which a backup or a restore makes its target. ArchiveError if another one makes it."""
    try:
        with unfinished.work_folder(target, parent) as folder:
            yield folder
    except unfinished.InUseError as error:
        raise ArchiveError(f"another backup or restore is making {target}", "wait until it has ended") from error


def _files(home: Path, settings: Path, folder: Path, *, models: bool) -> Iterator[tuple[str, Path]]:
    """Every file of the archive with its name. Copies of databases are made in `folder`."""
    for database in sorted((home / "data").glob("*.db")):
        copy = folder / database.name
        _copy(database, copy)
        yield f"data/{database.name}", copy
        copy.unlink()
    if settings.is_file():
        yield SETTINGS, settings
    for folder in (*FOLDERS, *(MODELS if models else ())):
        for path in sorted((home / folder).rglob("*")):
            name = path.relative_to(home)
            if is_backed_up(path) and name.parts[:2] not in _UNFINISHED:
                yield name.as_posix(), path


def is_backed_up(path: Path) -> bool:
    """Whether a backup includes what is at a path of its folders: only files, and no links."""
    return path.is_file() and not path.is_symlink()


def _copy(database: Path, copy: Path) -> None:
    """Copy a database in one transaction, and check the copy. ArchiveError if the database is damaged or cannot be read."""
    try:
        with closing(sqlite3.connect(database, timeout=30)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            found = str(target.execute("PRAGMA quick_check(1)").fetchone()[0])
            if found != "ok":
                raise sqlite3.DatabaseError(" ".join(found.split()))
    except sqlite3.OperationalError as error:
        remedy = "see that there is space, and that this user may read it; then run `llamesh backup` again"
        raise ArchiveError(f"{database} cannot be copied: {error}", remedy) from error
    except sqlite3.DatabaseError as error:
        remedy = f"`llamesh down`, then restore the backup of before, or repair it: sqlite3 {shlex.quote(str(database))} .recover"
        raise ArchiveError(f"{database} is damaged: {error}", remedy) from error


def _check_bounds(home: Path, name: str, before: int) -> None:
    """ArchiveError for a file that `restore` refuses: it has too many folders above it, or files before it."""
    if name.count("/") >= MAX_DEPTH:
        raise ArchiveError(
            f"{home / name} is more than {MAX_DEPTH - 1} folders deep, which no backup may hold", "move or remove it"
        )
    if before >= MAX_FILES:
        raise ArchiveError(
            f"{home} has more than {MAX_FILES} files for the backup",
            f"remove what is no model from {', '.join(MODELS)}",
        )


class Digested:
    """A file whose digest is computed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read at most so many bytes."""
        content = self._file.read(size)
        self.sha256.update(content)
        return content


def _add(archive: tarfile.TarFile, name: str, path: Path) -> str:
    """Add a file. Returns its SHA-256."""
    with path.open("rb") as file:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = os.fstat(file.fileno()).st_size, 0o600, int(path.stat().st_mtime)
        content = Digested(file)
        archive.addfile(entry, content)
        return content.sha256.hexdigest()


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    content = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.pax_headers = len(content), 0o600, {DIGEST: hashlib.sha256(content).hexdigest()}
    archive.addfile(entry, io.BytesIO(content))
