"""The objects of a mesh, read once for a plan, and the object that a document refers to. Only `read` calls the mesh."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from llamesh.cli.manifest.document import Document
from llamesh.cli.manifest.kinds import ID_ANNOTATION
from llamesh.server_conditions import staying
from llamesh.v1 import contract_pb2, gateway_pb2, model_pb2, server_pb2

if TYPE_CHECKING:
    from llamesh.client.sync import Client


class AmbiguousObjectError(LookupError):
    """Several objects of the mesh have a name in a document."""

    def __init__(self, ids: Sequence[str], field: str = "metadata.name") -> None:
        super().__init__(", ".join(ids))
        self.ids = tuple(ids)
        self.field = field
        """Where the name stands in the document."""

    def words(self, document: Document) -> str:
        """The problem and the remedy, with the place in the document."""
        remedy = f"set metadata.annotations.{ID_ANNOTATION}" if self.field == "metadata.name" else "write an id"
        return f"{document.place(self.field)}: its name is that of several: {', '.join(self.ids)}; {remedy}"


@dataclass(slots=True)
class Holdings:
    """Objects of a mesh."""

    models: dict[str, model_pb2.Model] = field(default_factory=dict)
    contracts: list[contract_pb2.Contract] = field(default_factory=list)
    users: dict[str, gateway_pb2.User] = field(default_factory=dict)
    servers: list[server_pb2.Server] = field(default_factory=list)
    keys: list[contract_pb2.Key] = field(default_factory=list)

    def model_name(self, uuid: str) -> str:
        """The name of a model; empty if the model is not there."""
        return self.models[uuid].name if uuid in self.models else ""

    def contract_id(self, name: str) -> str:
        """The id of a contract by its id or name; what was given if there is none. AmbiguousObjectError if several have the name."""
        if any(item.contract_id == name for item in self.contracts):
            return name
        found = [item.contract_id for item in self.contracts if item.display_name == name]
        if len(found) > 1:
            raise AmbiguousObjectError(found, "spec.contract")
        return found[0] if found else name

    def find(self, document: Document, served_name: str = "") -> Message | None:
        """Return the object that a document refers to; None if there is none. AmbiguousObjectError if several have its name."""
        if document.kind == "Model":
            return self.models.get(document.name)
        if document.kind == "User":
            return self.users.get(document.name)
        known = self._known(document.kind)
        if document.id and (exact := [item for item in known if identity(item) == document.id]):
            return exact[0]  # type: ignore[no-any-return]
        named = self.named(document, served_name)
        if len(named) > 1:
            raise AmbiguousObjectError([identity(item) for item in named])
        return named[0] if named else None

    def named(self, document: Document, served_name: str = "") -> list[Any]:
        """Every contract, server or key that has the name of a document."""
        return [item for item in self._known(document.kind) if _answers_to(item, document, served_name)]

    def _known(self, kind: str) -> Sequence[Any]:
        lists: dict[str, Sequence[Any]] = {"Contract": self.contracts, "ModelServe": self.servers, "Key": self.keys}
        return lists[kind]


def _answers_to(item: Any, document: Document, served_name: str) -> bool:
    if isinstance(item, server_pb2.Server):
        wanted: Any = document.spec
        place = item.spec.namespace or "default"
        return item.model_name == served_name and place == (wanted.namespace or "default")
    if isinstance(item, contract_pb2.Key) and item.state != contract_pb2.KEY_STATE_WORKS:
        return False
    return bool(item.display_name == document.name)


def identity(item: Any) -> str:
    """Return the id of an object in the mesh."""
    for name in ("server_uuid", "model_uuid", "key_id", "username", "contract_id"):
        if name in item.DESCRIPTOR.fields_by_name:
            return str(getattr(item, name))
    raise TypeError(item.DESCRIPTOR.full_name)


def kind_of(item: Message) -> str:
    """Return the kind that declares such an object; empty if there is none."""
    return {
        "llamesh.v1.Model": "Model",
        "llamesh.v1.Contract": "Contract",
        "llamesh.v1.User": "User",
        "llamesh.v1.Server": "ModelServe",
        "llamesh.v1.Key": "Key",
    }.get(item.DESCRIPTOR.full_name, "")


def read(mesh: Client, kinds: Set[str]) -> Holdings:
    """Read from the mesh the objects that a plan for these kinds needs."""
    found = Holdings()
    if kinds & {"Model", "ModelServe"}:
        found.models = {item.model_uuid: item for item in mesh.models.list()}
    if kinds & {"Contract", "User", "Key"}:
        found.contracts = list(mesh.contracts.list())
    if "User" in kinds:
        found.users = {item.username: item for item in mesh.users.list()}
    if "ModelServe" in kinds:
        # One that is being removed is as good as gone: a plan that keeps it would be wrong a moment later.
        found.servers = staying(mesh.servers.list())
    if "Key" in kinds:
        found.keys = list(mesh.keys.list())
    return found
