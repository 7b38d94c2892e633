"""Checks the names in requests: warns of those that nothing has and that several servers share, and refuses ids and aliases of models.

A warning refuses nothing: a key or a contract may be made before the model that it names, and servers may share a name on purpose. The id
or an alias of a model is refused unless a server has it as its name: requests use the name of the model.

Invariant: a mesh that does not answer these questions gives no warning and refuses nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from llamesh.cli.failure import CommandError, Exit
from llamesh.cli.output import text
from llamesh.cli.printing import note
from llamesh.nearest import nearest
from llamesh.server_conditions import staying

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.model_pb2 import Model
    from llamesh.v1.server_pb2 import Server

INFER = "infer:"
ANY = "*"


def requestable(models: Iterable[Model], servers: Iterable[Server]) -> set[str]:
    """Return the names by which requests may ask for a model, now or once it is served: names of models, names and ids of servers."""
    return {model.name for model in models} | {
        name for server in servers for name in (server.server_uuid, server.model_name)
    }


def refusals_of_ids_and_aliases(
    names: Iterable[str], models: Iterable[Model], requestable: Container[str]
) -> list[str]:
    """Return a refusal for each name that is the id or an alias of a model: no request may use it as long as no server has it."""
    known: dict[str, tuple[str, str]] = {}
    for model in models:
        known |= dict.fromkeys(model.aliases, ("an alias", model.name))
        known[model.model_uuid] = ("the id of a model", model.name)
    return [
        f"{text(name)} is {known[name][0]}; requests use {text(known[name][1])}"
        for name in dict.fromkeys(names)
        if name in known and name not in requestable
    ]


def models_of_scopes(scopes: Iterable[str]) -> list[str]:
    """Return the names that scopes allow to ask for; "*" for all."""
    return [scope.removeprefix(INFER) for scope in scopes if scope.startswith(INFER)]


def checked_names(mesh: Client, names: Iterable[str]) -> list[str]:
    """Return a warning for each of these names that no model and no server has.

    CommandError if one is the id or an alias of a model that no server has as its name.
    """
    from llamesh.client.errors import MeshError

    wanted = [name for name in names if name != ANY]
    if not wanted:
        return []
    try:
        models = list(mesh.models.list())
        known = requestable(models, staying(mesh.servers.list()))
    except MeshError:
        return []
    if others := refusals_of_ids_and_aliases(wanted, models, known):
        aliases = {alias: model for model in models for alias in model.aliases}
        alias = next((name for name in wanted if name in aliases and name not in known), "")
        served = ["llamesh", "serve", aliases[alias].name, "--name", alias] if alias else []
        hint = f"or serve the model by this name first: {shlex.join(served)}" if served else ""
        raise CommandError("; ".join(others), hint=hint, code=Exit.USAGE)
    return unknown_names(wanted, known)


def unknown_names(names: Iterable[str], known: set[str]) -> list[str]:
    """Return a warning for each name that is neither known nor "*"."""
    return [_unknown(name, known) for name in dict.fromkeys(names) if name not in known | {ANY}]


def _unknown(name: str, known: set[str]) -> str:
    near = nearest(name, sorted(known))
    then = f"did you mean {text(near)}?" if near else "it allows nothing until one has this name"
    return f"no model and no server is named {text(name)}; {then}"


def say_name(server: Server, word: str) -> None:
    """Say which name requests put into "model", if it is neither the word that was given nor the name of its file."""
    if server.model_name and server.model_name not in {word, word.rpartition("/")[2]}:
        note(f'requests put "model": "{text(server.model_name)}"')


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
