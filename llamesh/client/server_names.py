"""Finds the server that a word names: by its id, its name or the beginning of its id, else by any name of the model that it alone serves.

Pure. Invariant: a word that names several servers is an error with these servers, and a server that is being removed is meant only if no
other is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llamesh.client.names import AmbiguousNameError, names_of, resolve
from llamesh.server_conditions import staying

if TYPE_CHECKING:
    from llamesh.v1.model_pb2 import Model
    from llamesh.v1.server_pb2 import Server


class AmbiguousServerError(AmbiguousNameError):
    """Several servers have the name, or serve the model with it."""

    def __init__(self, name: str, servers: Sequence[Server]) -> None:
        super().__init__(name, [server.server_uuid for server in servers])
        self.servers = tuple(servers)


class NotServedError(LookupError):
    """The name is that of a model that no server serves."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no server serves the model {name!r}")
        self.name = name


def own_server(word: str, servers: Sequence[Server]) -> Server | None:
    """Return the server with this id, name or beginning of an id; None if there is none. Raises AmbiguousServerError."""
    for group in (staying(servers), servers):
        try:
            meant = resolve(word, [(server.server_uuid, server.model_name) for server in group], shortened=True)
        except AmbiguousNameError as ambiguous:
            several = [server for server in group if server.server_uuid in ambiguous.ids]
            raise AmbiguousServerError(word, several) from ambiguous
        if found := [server for server in group if server.server_uuid == meant]:
            return found[0]
    return None


def server_of_model(word: str, models: Iterable[Model], servers: Sequence[Server]) -> Server | None:
    """Return the server of the model with this id, name or alias; None if there is no such model.

    Raises NotServedError, AmbiguousServerError, and AmbiguousNameError if several models have the name.
    """
    known = [pair for model in models for pair in names_of(model)]
    meant = resolve(word, known)
    if not any(meant == uuid for uuid, _ in known):
        return None
    serving = [server for server in staying(servers) if server.model_uuid == meant]
    if not serving:
        raise NotServedError(word)
    if len(serving) > 1:
        raise AmbiguousServerError(word, serving)
    return serving[0]
