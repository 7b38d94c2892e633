"""Records the objects that an apply has created in files of this user, so that `--prune` removes nothing else.

An entry has the object's id and creation time: an object that somebody removed and made anew is not pruned, and an entry of one mesh means
nothing in another. So an address only decides which file is written: all files of a set are read, because a mesh may have several
addresses. An intention has no id and counts only at the address that it was written for. Invariant: an object is in the file before it is
in the mesh, as an intention, so that a killed apply forgets nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llamesh.cli.declaring import applied_directory
from llamesh.cli.failure import CommandError
from llamesh.cli.manifest.holdings import identity, kind_of
from llamesh.cli.printing import note
from llamesh.client.errors import MeshError
from llamesh.client.profile import THIS_MACHINE
from llamesh.private_files import write_private


@dataclass(frozen=True, slots=True)
class CreatedObject:
    """One object that an apply created, or an intention: one that it was about to create."""

    kind: str
    name: str
    id: str
    """Empty for an intention."""
    create_time: str
    """Of an intention: when it was written, by the clock of this machine."""
    found_by: str = ""
    """Of an intention: the key by which a plan finds the object."""


def entry(name: str, item: Any) -> CreatedObject:
    """The entry for an object."""
    return CreatedObject(kind_of(item), name, identity(item), item.create_time.ToJsonString())


class Record:
    """The entries of one set of manifests. What is created at an address is written into the file of the set and the address."""

    def __init__(self, url: str, name: str, environment: Mapping[str, str] = os.environ) -> None:
        folder, self._set = applied_directory(environment), _digest(name)
        self.path = folder / f"{self._set}-{_digest(url)}.json"
        self._old = folder / f"{_digest(url, name)}.json"
        """Where earlier releases wrote; only read."""
        self._older = [folder / f"{_digest(other, name)}.json" for other in _other_spellings(url)]

    def entries(self) -> list[CreatedObject]:
        """Return the created objects; none without a record. CommandError if that of this address cannot be read: it would be replaced."""
        own = [*_read(self.path), *_read(self._old)]
        others = sorted({*self.path.parent.glob(f"{self._set}-*.json")} - {self.path})
        foreign = [item for path in [*others, *self._older] for item in _read_foreign(path) if item.id]
        return list(dict.fromkeys([*own, *foreign]))

    def creating(self, kind: str, name: str, found_by: str, create: Callable[[], Any]) -> Any:
        """Create an object between its intention and its entry. CommandError, with nothing created, if the file cannot be written."""
        wanted = CreatedObject(kind, name, "", datetime.now(UTC).isoformat(), found_by)
        self._replace(lambda item: (item.kind, item.found_by) == (kind, found_by), [wanted])
        try:
            made = create()
        except Exception as error:
            if isinstance(error, CommandError) or (isinstance(error, MeshError) and error.reason):
                # It was refused: an object of this name is somebody else's.
                self.drop(wanted)
            raise
        self._replace(lambda item: item == wanted, [entry(name, made)])
        return made

    def drop(self, gone: CreatedObject) -> None:
        """Forget an entry. CommandError if the file cannot be written."""
        self._replace(lambda item: item == gone, [])

    def _replace(self, is_old: Callable[[CreatedObject], bool], new: Sequence[CreatedObject]) -> None:
        """Read the file again and replace entries in one step."""
        entries = [*(item for item in _read(self.path) if not is_old(item)), *new]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(self.path, json.dumps([asdict(item) for item in entries], indent=1).encode())
        except OSError as error:
            words = f"the record of what apply creates cannot be written: {self.path}: {error.strerror}"
            raise CommandError(words, hint="make room there, or name another folder in XDG_STATE_HOME") from error


def _read(path: Path) -> list[CreatedObject]:
    try:
        return [CreatedObject(**item) for item in json.loads(path.read_text("utf-8"))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise CommandError(
            f"the record of what apply created cannot be read: {path}: {words}",
            hint="restore it, or move it away: --prune then leaves what it named, and `llamesh delete -f` removes it",
        ) from error


def _read_foreign(path: Path) -> list[CreatedObject]:
    """Return the entries of another address. This apply does not write its file, so a damaged one only means fewer removals."""
    try:
        return _read(path)
    except CommandError as error:
        note(f"{error}; what it names is not pruned")
        return []


def _digest(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def _other_spellings(url: str) -> list[str]:
    """Return other likely URLs of the same mesh: http or https, and every loopback name."""
    parts = urlsplit(url)
    hosts = {name: f"[{name}]" if ":" in name else name for name in (*THIS_MACHINE, parts.hostname or "")}
    names = THIS_MACHINE if parts.hostname in THIS_MACHINE else {parts.hostname or ""}
    port = f":{parts.port}" if parts.port else ""
    return sorted({f"{scheme}://{hosts[name]}{port}" for scheme in ("http", "https") for name in names} - {url})
