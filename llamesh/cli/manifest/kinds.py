"""Kinds of a manifest, in the order of their dependencies: each kind refers only to kinds before it."""

from __future__ import annotations

from google.protobuf.message import Message

from llamesh.v1 import manifest_pb2, server_pb2

API_VERSION = "llamesh.dev/v1alpha1"
SPECS: dict[str, type[Message]] = {
    "Model": manifest_pb2.ModelSpec,
    "Contract": manifest_pb2.ContractSpec,
    "User": manifest_pb2.UserSpec,
    "ModelServe": server_pb2.ServerSpec,
    "Key": manifest_pb2.KeySpec,
}
ORDER = tuple(SPECS)
ID_ANNOTATION = "llamesh.dev/id"
"""Names the server, contract or key that is meant, if its name alone is not enough."""


def label_of(kind: str, name: str) -> str:
    """Kind and name, as people read them."""
    return f"{kind}/{name}"
