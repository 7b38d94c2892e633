"""The record of what an apply created, in a file of this user. Invariant: `--prune` removes nothing else.

An entry has the object's id and creation time, so an object that somebody removed and created again is not pruned.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamesh.cli.manifest.holdings import identity, kind_of


@dataclass(frozen=True, slots=True)
class CreatedObject:
    """One object that an apply created."""

    kind: str
    name: str
    id: str
    create_time: str


def entry(name: str, item: Any) -> CreatedObject:
    """The entry for an object."""
    return CreatedObject(kind_of(item), name, identity(item), item.create_time.ToJsonString())


class Record:
    """The entries of one set of manifests on one mesh."""

    def __init__(self, url: str, name: str, environment: Mapping[str, str] = os.environ) -> None:
        base = environment.get("XDG_STATE_HOME")
        folder = (Path(base) if base else Path("~/.local/state").expanduser()) / "llamesh" / "applied"
        self.path = folder / (hashlib.sha256(f"{url}\n{name}".encode()).hexdigest()[:32] + ".json")

    def entries(self) -> list[CreatedObject]:
        """Return the entries; none if the record cannot be read."""
        try:
            return [CreatedObject(**item) for item in json.loads(self.path.read_text())]
        except (OSError, ValueError, TypeError):
            return []

    def write(self, entries: Sequence[CreatedObject]) -> None:
        """Replace the entries atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = self.path.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps([asdict(item) for item in entries], indent=1))
        unfinished.replace(self.path)
