"""Files of this machine that a mesh on this machine may not read: linked into LLAMESH_HOME/import/handed-over, as the command does.

The download service removes the links when the fetch has ended. Invariant: the same files for the same model are the same
source, whether the SDK or the command hands them over, so a pull can be repeated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from llamesh.client.profile import on_this_machine
from llamesh.local_mesh import running_here
from llamesh.locations import handed_over_directory, home_directory
from llamesh.part_names import parts_of

if TYPE_CHECKING:
    from llamesh.v1 import download_pb2


def hand_over(request: download_pb2.StartDownloadRequest, url: str) -> bool:
    """Link the files that a request names where the mesh at a URL may read them, and let the request name the links.

    Return False, with the request as it was, if the mesh is not on this machine, or a file is missing or cannot be linked. Copies nothing.
    """
    home = home_here(url)
    if home is None:
        return False
    given = type(request)()
    given.CopyFrom(request)
    try:
        given.source = _linked(request.source, home, request.model_uuid)
        given.projector = _linked(request.projector, home, companion_purpose("projector", request.model_uuid))
        for adapter in given.adapters:
            adapter.source = _linked(adapter.source, home, companion_purpose(adapter.name, request.model_uuid))
    except (OSError, ValueError):
        return False
    request.CopyFrom(given)
    return True


def home_here(url: str) -> Path | None:
    """Return the home of the mesh at a URL if it runs on this machine in LLAMESH_HOME; None otherwise."""
    here = running_here(os.environ) if on_this_machine(url) else None
    same = here is not None and urlsplit(here.management).port == urlsplit(url).port
    return home_directory(os.environ) if same else None


def companion_purpose(companion: str, model_uuid: str) -> str:
    """Return the purpose (see `place_of`) for a companion of a model: `projector`, or the name of an adapter."""
    return f"{companion} of {model_uuid}"


def place_of(home: Path, files: Mapping[str, Path], purpose: str) -> Path:
    """Return the folder for files by their names in it. Raises OSError.

    `purpose` tells apart several fetches of one file: the id of the model that it becomes, or `companion_purpose`.
    """
    stats = ((name, file.stat()) for name, file in files.items())
    words = "-".join(f"{name}-{it.st_dev}-{it.st_ino}-{it.st_size}-{it.st_mtime_ns}" for name, it in stats)
    return handed_over_directory(home) / hashlib.sha256(f"{words}-{purpose}".encode()).hexdigest()[:16]


def _linked(address: str, home: Path, purpose: str) -> str:
    """Return the address of a link to a file; other addresses, and those of files below the import folder, are unchanged."""
    # A system without flock has no mesh, and its SDK needs none of this.
    from llamesh.client.handed_folder import HandedFolder

    if not address.startswith("file:"):
        return address
    path = Path(unquote(urlsplit(address).path))
    found = path.resolve(strict=True)
    if found.is_relative_to((home / "import").resolve()):
        return address
    files = {name: path.with_name(name) for name in parts_of(path.name)}
    place = place_of(home, files, purpose)
    HandedFolder(place, copies=False).place(files)
    return (place / path.name).as_uri()
