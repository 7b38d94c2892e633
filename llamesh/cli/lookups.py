"""Finds what a word on the command line names: a server, or anything else that has an id and a name.

Invariant: a word that names several things is refused with what tells them apart. A word that names nothing is refused with the nearest
name; if none is near, it is returned as it is, and the mesh refuses it with its own reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from shlex import quote
from typing import TYPE_CHECKING

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import text
from llamesh.client.names import AmbiguousNameError, names_of, resolve
from llamesh.nearest import nearest
from llamesh.server_conditions import staying

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import Server


class NoOneServerError(CommandError):
    """The word names a model that no server serves, or several servers."""


def find_id(word: str, known: Sequence[tuple[str, str]], kind: str) -> str:
    """The id of the thing that a word names by its id or name, among (id, name) pairs. `kind`: what it is, in words."""
    meant = resolve(word, known)
    if any(meant == item for item, _ in known):
        return meant
    _refuse_near(word, known, kind)
    return word


def find_server(mesh: Client, word: str) -> str:
    """The id of the server that a word names: by its id, its name or the beginning of its id, else by any name of the model that it alone
    serves."""
    servers = list(mesh.servers.list())
    if found := own_server(word, servers):
        return found.server_uuid
    models = [pair for item in mesh.models.list() for pair in names_of(item)]
    model = resolve(word, models)
    if not any(model == uuid for uuid, _ in models):
        _refuse_near(word, [*((server.server_uuid, server.model_name) for server in servers), *models], "server")
        return word
    serving = [server for server in staying(servers) if server.model_uuid == model]
    if not serving:
        hint = f"`llamesh serve {quote(text(word))}` serves it, `llamesh run {quote(text(word))}` serves it and talks to it"
        raise NoOneServerError(f"no server serves the model {text(word)}", hint=hint, code=Exit.NOT_FOUND)
    return _only(word, serving).server_uuid


def own_server(word: str, servers: Sequence[Server]) -> Server | None:
    """The server with this id, name or beginning of an id; None if there is none."""
    # A server that is being removed is meant only if no other is.
    for group in (staying(servers), servers):
        try:
            meant = resolve(word, [(server.server_uuid, server.model_name) for server in group], shortened=True)
        except AmbiguousNameError as ambiguous:
            return _only(word, [server for server in group if server.server_uuid in ambiguous.ids])
        if found := [server for server in group if server.server_uuid == meant]:
            return found[0]
    return None


def _only(word: str, servers: Sequence[Server]) -> Server:
    if len(servers) == 1:
        return servers[0]
    lines = [f"{item.server_uuid}  {item.model_name}  {item.runtime_params}".rstrip() for item in servers]
    cause = f"{text(word)} names {len(servers)} servers; give the id of one"
    raise NoOneServerError(cause, parts=[text(line) for line in lines], code=Exit.USAGE)


def _refuse_near(word: str, known: Iterable[tuple[str, str]], kind: str) -> None:
    """Refuse a word that is nearly a name."""
    if near := nearest(word, dict.fromkeys(name for pair in known for name in pair if name)):
        raise CommandError(f"there is no {kind} {text(word)}", hint=f"did you mean {text(near)}?", code=Exit.NOT_FOUND)
