"""Reads the catalogue of a home while its mesh does not run: the commands that fetch its models again.

Invariant: nothing is changed, and a catalogue that cannot be read gives one command with placeholders.
"""

from __future__ import annotations

import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

from llamesh.client.references import default_uuid
from llamesh.model_addresses import is_address

_UNKNOWN = "llamesh pull SOURCE --name NAME"


def pulls(home: Path) -> list[str]:
    """Return the command that fetches each model, in the order of their names."""
    database = home / "data" / "download.db"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as opened:
            found = opened.execute("select model_uuid, name, source from model order by name").fetchall()
    except (sqlite3.Error, ValueError):
        return [_UNKNOWN]
    return [_pull(*map(str, row)) for row in found]


def _pull(uuid: str, name: str, source: str) -> str:
    # The mesh does not record where a file of a person was.
    source = source if is_address(source) and not source.startswith("file:") else f"PATH/{name}"
    # Servers name their model by its id, which is made from the name unless it was given.
    given = [] if uuid == default_uuid(name) else ["--uuid", uuid]
    return shlex.join(["llamesh", "pull", source, "--name", name, *given])
