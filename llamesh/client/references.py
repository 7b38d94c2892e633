"""Converts the arguments of callers to values of requests. Pure; both clients use it, with and without `await`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from llamesh.locations import expanded
from llamesh.model_addresses import ADDRESSES, canonical, default_name, is_address, likely, shown_address
from llamesh.v1 import download_pb2, model_pb2, server_pb2

if TYPE_CHECKING:
    from llamesh.client import errors

Model = str | model_pb2.Model | download_pb2.Download
"""A model, by its id or as an earlier answer."""
Server = str | server_pb2.Server
"""A server, by its id or as an earlier answer."""


def address_of(source: str | Path) -> str:
    """Return the canonical address of a source. A path becomes a file address."""
    text = str(source)
    if not text or (isinstance(source, str) and is_address(text)):
        try:
            return canonical(text)
        except ValueError:
            # The mesh refuses such an address and explains why.
            return text
    return expanded(source).absolute().as_uri()


def name_way_of_file(refused: errors.MeshError, source: str | Path, address: str) -> None:
    """Put into the refusal of a file outside the import folders how it comes in: the mesh cannot know that the file is its caller's.

    If there is no such file here either, the refusal says so; a word that is no path gets the nearest address. A refusal of another kind,
    or of a companion of the model, stays as it is.
    """
    other = any(item.field != "source" for item in refused.fields)
    if not address.startswith("file:") or refused.metadata.get("rule") != "folder" or other:
        return
    word, path = str(source), Path(unquote(urlsplit(address).path))
    if isinstance(source, str) and not path.exists() and "/" not in word and not word.lower().endswith(".gguf"):
        refused.message = f"{word} is neither an address nor a file of this machine"
        refused.remedy = f"Did you mean {likely(word) or f'ollama:{word}'}? An address is {ADDRESSES}."
    elif not path.exists():
        refused.message = f"there is no file {word} on this machine, and the mesh imports none of this path"
        refused.remedy = "Check the path. On the machine of the mesh, the file must be below LLAMESH_HOME/import or LLAMESH_IMPORT_DIRS."
    else:
        path_word = shlex.quote(str(path))
        refused.remedy = (
            f"Run `llamesh pull {path_word}`, which hands a file of this machine over to its mesh;"
            " or put it below LLAMESH_HOME/import or a folder of LLAMESH_IMPORT_DIRS."
        )


def default_uuid(name: str) -> str:
    """Return the id of a model of this name, if none is given."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:128]


def uuid_for(address: str, name: str) -> str:
    """Return the id of a model from an address if none is given: made from the name, which is empty if the address has none.

    Then the address makes it, so that the mesh judges the address and says what is wrong with it.
    """
    return default_uuid(name) or (default_uuid(shown_address(address)) or "model" if address else "")


def uuid_of_pull(source: str | Path, *, uuid: str, name: str) -> str:
    """Return the id of the model that a pull brings: the given one, else made from the name, else from the source."""
    address = address_of(source)
    return uuid or uuid_for(address, name or default_name(address))


def model_uuid_of(model: Model) -> str:
    """Return the id of a model."""
    return model if isinstance(model, str) else model.model_uuid


def matrix_address(source: str | Path) -> str:
    """Return the address of the file of an importance matrix; empty if none is given."""
    return address_of(source) if source else ""


def job_source(model: Model) -> dict[str, str]:
    """Return the fields of a job's request that say what it is made from: a model, or the address of a checkpoint."""
    if isinstance(model, str) and is_address(model):
        return {"source": address_of(model)}
    return {"model_uuid": model_uuid_of(model)}


def server_uuid_of(server: Server) -> str:
    """Return the id of a server."""
    return server if isinstance(server, str) else server.server_uuid


def set_seconds(duration: Any, seconds: float | None) -> None:
    """Set a Duration from seconds; None leaves it unset."""
    if seconds is not None:
        duration.FromNanoseconds(round(seconds * 1e9))


def why_not_ready(server: server_pb2.Server) -> str:
    """Describe for people why a server is not ready."""
    for condition in server.conditions:
        if condition.type == "Ready" and condition.message:
            return condition.message
    return f"the engines of {server.server_uuid} do not answer"
