"""A backup of a home: databases, settings, secrets, certificates and, if wanted, models, in one archive.

Tables in PostgreSQL are a dump in the archive, which the caller makes and restores (`tables`).

Invariant: each database is copied in a transaction of its own, while the mesh may run; the archive appears whole or not at all, for this
user only. A home is restored whole or not at all, and only where there is none.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from llamesh.locations import make_private

FORMAT = 1
MANIFEST = "llamesh-backup.json"
FOLDERS = ("secrets", "tls", "import")
"""Copied as they are, beside `data` and the settings."""
MODELS = ("objects", "llm-models")
"""The models that can be served, and those that the Quant service has published."""
TABLES = "postgres.dump"
"""The tables, if they are in PostgreSQL."""
_SETTINGS = "config.env"


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
                for name, path in _files(home, settings, models=models):
                    _add(archive, name, path)
                if dump is not None:
                    _add(archive, TABLES, dump)
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
    if home.exists() and any(home.iterdir()):
        raise ArchiveError(
            f"{home} is not empty: a backup is restored where there is no mesh",
            f"set LLAMESH_HOME to a new folder, or move the old one away: mv {home} {home}.old",
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{home.name}.", dir=home.parent))
    try:
        with tarfile.open(source, "r:*") as archive:
            manifest = _manifest(archive, source, version)
            for member in archive:
                _extract(archive, member, unfinished)
        if (unfinished / TABLES).exists():
            load(unfinished / TABLES, unfinished)
            (unfinished / TABLES).unlink()
        if home.exists():
            home.rmdir()
        unfinished.replace(home)
    except (tarfile.TarError, EOFError) as error:
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
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(home).as_posix(), path


def _add(archive: tarfile.TarFile, name: str, path: Path) -> None:
    with path.open("rb") as content:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode, entry.mtime = os.fstat(content.fileno()).st_size, 0o600, int(path.stat().st_mtime)
        archive.addfile(entry, content)


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), 0o600
    archive.addfile(entry, io.BytesIO(text.encode()))


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, home: Path) -> None:
    """Extract one file. An untrusted archive can write nothing outside the home, and no link."""
    name = PurePosixPath(member.name)
    allowed = name.parts[:1] and name.parts[0] in {"data", _SETTINGS, TABLES, *MODELS, *FOLDERS, MANIFEST}
    if not member.isreg() or name.is_absolute() or ".." in name.parts or not allowed:
        raise ArchiveError(f"it holds {member.name!r}, which no backup of llamesh does")
    content = archive.extractfile(member)
    if member.name == MANIFEST or content is None:
        return
    target = home.joinpath(*name.parts)
    for folder in reversed([parent for parent in target.parents if parent.is_relative_to(home)]):
        make_private(folder)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
