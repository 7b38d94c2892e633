"""Kinds of a manifest, in the order of their dependencies: each kind refers only to kinds before it."""

from __future__ import annotations

from google.protobuf.message import Message

from llamesh.cli.output import text
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
NAMED_FOR_PEOPLE = frozenset({"Contract", "Key"})
"""Kinds whose name is a display name of the contract service: any text of at most `MAX_NAME` characters."""
MAX_NAME = 128
ID_ANNOTATION = "llamesh.dev/id"
"""Annotation with the id of a server, contract or key, for names that are not unique."""


def label_of(kind: str, name: str) -> str:
    """Kind and name, as people read them: characters that a terminal would act on are shown as spaces."""
    return f"{kind}/{text(name)}"
