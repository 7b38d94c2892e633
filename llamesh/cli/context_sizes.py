"""Tokens of context: what the model of a server was trained for, and what one request to a server may use.

Invariant: 0 means that the mesh does not say; nothing is guessed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamesh.cli.connection import connected
from llamesh.cli.failure import CommandError
from llamesh.server_conditions import staying

if TYPE_CHECKING:
    from llamesh.client.sync import Client
    from llamesh.v1.model_pb2 import Model
    from llamesh.v1.server_pb2 import Server


def model_of(mesh: Client, server: Server) -> Model | None:
    """Return the model of a server; None if the catalogue does not say."""
    from llamesh.client.errors import MeshError

    try:
        # By the id only: another model may have the id of one that was removed as its name.
        return mesh.models.get(server.model_uuid, by_name=False)
    except MeshError:
        return None


def model_context(model: Model | None) -> int:
    """Tokens that a model was trained for; 0 if the catalogue does not say."""
    return int(model.gguf.context_length) if model is not None else 0


def slot_context(model: str) -> int:
    """Tokens that one request to a model, or to a server's id, may use; the least of several servers. 0 if the mesh does not say."""
    from llamesh.client.errors import MeshError
    from llamesh.runtime_parameters import slot_context as context_of

    try:
        with connected() as mesh:
            present = staying(mesh.servers.list())
            servers = [server for server in present if model in {server.server_uuid, server.model_name}]
            contexts = [context_of(server.spec.parameters, model_context(model_of(mesh, server))) for server in servers]
    except (CommandError, MeshError):
        return 0
    return min(contexts, default=0)
