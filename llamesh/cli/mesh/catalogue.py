"""Reads the catalogue of a home while its mesh does not run: the commands that fetch its models again, with all their files.

Invariant: nothing is changed, and a catalogue that cannot be read gives one command with placeholders.
"""

from __future__ import annotations

import json
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from llamesh.client.references import default_uuid
from llamesh.model_addresses import is_address
from llamesh.part_names import part_of

_UNKNOWN = "llamesh pull SOURCE --name NAME"
_MODELS = """select model.model_uuid, model.name, model.source, coalesce(model_file.name, ''),
    coalesce(transfer.projector, ''), coalesce(transfer.adapters, '[]')
    from model left join model_file on model_file.model_uuid = model.model_uuid and model_file.number = 1
    left join transfer on transfer.model_uuid = model.model_uuid order by model.name"""
_OF_EARLIER_RELEASES = "select model_uuid, name, source, '', '', '[]' from model order by name"
"""For a database without files of models, projectors or adapters."""


def pulls(home: Path) -> list[str]:
    """Return the command that fetches each model with its projector and its adapters, in the order of the models' names."""
    database = home / "data" / "download.db"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as opened:
            try:
                found = opened.execute(_MODELS).fetchall()
            except sqlite3.OperationalError:
                found = opened.execute(_OF_EARLIER_RELEASES).fetchall()
        return [_pull(*map(str, row)) for row in found]
    except (sqlite3.Error, ValueError):
        return [_UNKNOWN]


def _pull(uuid: str, name: str, source: str, first_file: str, projector: str, adapters: str) -> str:
    # A part of a model must have its name in the source; the others are found beside it.
    source = _place(source, first_file if part_of(first_file)[1] > 1 else name)
    words = ["llamesh", "pull", source, "--name", name]
    if projector:
        words += ["--mmproj", projector if projector == "none" else _place(projector)]
    for adapter, place in json.loads(adapters):
        words += ["--lora", "none" if place == "none" else f"{adapter}={_place(str(place))}"]
    # Servers name their model by its id, which is made from the name unless it was given.
    return shlex.join(words if uuid == default_uuid(name) else [*words, "--uuid", uuid])


def _place(source: str, name: str = "") -> str:
    """Return an address without its query, which may be a signature; PATH and a name if the source was a file of this machine.

    The mesh does not record where a file of a person was.
    """
    if is_address(source) and not source.startswith("file:"):
        return source.partition("?")[0] if source.startswith(("http:", "https:")) else source
    return f"PATH/{name or unquote(source.rpartition('/')[2])}"
