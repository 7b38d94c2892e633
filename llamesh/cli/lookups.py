"""Finds what a word on the command line names: a server, or anything else that has an id and a name.

Invariant: a word that names several things is refused with what tells them apart. A word that names nothing is refused with the nearest
name; if none is near, it is returned as it is, and the mesh refuses it with its own reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from shlex import quote
from typing import TYPE_CHECKING

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import text
from llamesh.client import server_names
from llamesh.client.names import names_of, resolve
from llamesh.nearest import nearest

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.server_pb2 import Server


class ServerNotUniqueError(CommandError):
    """The word names a model that no server serves, or several servers."""


def find_id(word: str, known: Sequence[tuple[str, str]], kind: str) -> str:
    """The id of the thing that a word names by its id or name, among (id, name) pairs. `kind`: what it is, in words."""
    meant = resolve(word, known)
    if any(meant == item for item, _ in known):
        return meant
    refuse_near(word, known, kind)
    return word


def find_model(mesh: Client, word: str) -> str:
    """The id of the model that a word names by its id, its name or an alias."""
    from llamesh.cli.absent_models import refuse_coming, refuse_folder, refuse_source

    models = list(mesh.models.list())
    known = [pair for model in models for pair in names_of(model)]
    if not any(word in pair for pair in known):
        refuse_source(word, models)
        refuse_coming(mesh, word)
        refuse_near(word, known, "model")
        refuse_folder(word)
    return find_id(word, known, "model")


@contextmanager
def existing_user(mesh: Client, username: str) -> Iterator[None]:
    """Refuse a name that the mesh does not know as a user's with the nearest one, if the caller may list the users."""
    from llamesh.client.errors import MeshError, UserNotFound

    try:
        yield
    except UserNotFound:
        try:
            known = [(item.username, "") for item in mesh.users.list()]
        except MeshError:
            known = []
        refuse_near(username, known, "user")
        raise


def find_server(mesh: Client, word: str) -> str:
    """The id of the server that a word names: by its id, its name or the beginning of its id, else by any name of the model that it alone
    serves."""
    servers = list(mesh.servers.list())
    if found := own_server(word, servers):
        return found.server_uuid
    models = list(mesh.models.list())
    with _no_one_server():
        if found := server_names.server_of_model(word, models, servers):
            return found.server_uuid
    known = [(server.server_uuid, server.model_name) for server in servers]
    refuse_near(word, [*known, *(pair for model in models for pair in names_of(model))], "server")
    return word


def own_server(word: str, servers: Sequence[Server]) -> Server | None:
    """The server with this id, name or beginning of an id; None if there is none."""
    with _no_one_server():
        return server_names.own_server(word, servers)


@contextmanager
def _no_one_server() -> Iterator[None]:
    """Say in the command's words why a name means no one server."""
    try:
        yield
    except server_names.NotServedError as error:
        name = text(error.name)
        hint = f"`llamesh serve {quote(name)}` serves it, `llamesh run {quote(name)}` serves it and talks to it"
        raise ServerNotUniqueError(f"no server serves the model {name}", hint=hint, code=Exit.NOT_FOUND) from error
    except server_names.AmbiguousServerError as error:
        lines = [f"{item.server_uuid}  {item.model_name}  {item.runtime_params}".rstrip() for item in error.servers]
        cause = f"{text(error.name)} names {len(lines)} servers; give the id of one"
        raise ServerNotUniqueError(cause, parts=[text(line) for line in lines], code=Exit.USAGE) from error


def refuse_near(word: str, known: Iterable[tuple[str, str]], kind: str) -> None:
    """Refuse a word that is nearly a name."""
    if near := nearest(word, dict.fromkeys(name for pair in known for name in pair if name)):
        raise CommandError(f"there is no {kind} {text(word)}", hint=f"did you mean {text(near)}?", code=Exit.NOT_FOUND)
