"""Warns about the names in requests: those that nothing has, and those that several servers share.

A warning refuses nothing: a key or a contract may be made before the model that it names, and servers may share a name on purpose.

Invariant: a mesh that does not answer these questions gives no warning, and the command that asks has done its work before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llamesh.cli.output import text
from llamesh.cli.printing import note
from llamesh.client.names import names_of
from llamesh.nearest import nearest
from llamesh.server_conditions import staying

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.model_pb2 import Model
    from llamesh.v1.server_pb2 import Server

INFER = "infer:"
ANY = "*"


def requestable(models: Iterable[Model], servers: Iterable[Server]) -> set[str]:
    """Return the names by which requests may ask for a model, now or once it is served: ids and names of models and servers."""
    named = {name for model in models for pair in names_of(model) for name in pair}
    return named | {name for server in servers for name in (server.server_uuid, server.model_name)}


def models_of_scopes(scopes: Iterable[str]) -> list[str]:
    """Return the names that scopes allow to ask for; "*" for all."""
    return [scope.removeprefix(INFER) for scope in scopes if scope.startswith(INFER)]


def warn_of_unknown(mesh: Client, names: Iterable[str]) -> None:
    """Say which of these names no model and no server has."""
    from llamesh.client.errors import MeshError

    wanted = [name for name in names if name != ANY]
    if not wanted:
        return
    try:
        known = requestable(mesh.models.list(), staying(mesh.servers.list()))
    except MeshError:
        return
    for words in unknown_names(wanted, known):
        note(words)


def unknown_names(names: Iterable[str], known: set[str]) -> list[str]:
    """Return a warning for each name that is neither known nor "*"."""
    return [_unknown(name, known) for name in dict.fromkeys(names) if name not in known | {ANY}]


def _unknown(name: str, known: set[str]) -> str:
    near = nearest(name, sorted(known))
    then = f"did you mean {text(near)}?" if near else "it allows nothing until one has this name"
    return f"no model and no server is named {text(name)}; {then}"


def warn_of_shared(server: Server, servers: Sequence[Server]) -> None:
    """Say if other servers have the name of a server: requests by this name are shared among all of them."""
    others = [
        other
        for other in staying(servers)
        if other.model_name == server.model_name and other.server_uuid != server.server_uuid
    ]
    if not others or not server.model_name:
        return
    several = any(other.model_uuid != server.model_uuid for other in others)
    models = ", of different models," if several else ""
    note(
        f"{len(others) + 1} servers{models} are named {text(server.model_name)} and share its requests; "
        f"`llamesh set {server.server_uuid} --name NAME` gives this one a name of its own"
    )
