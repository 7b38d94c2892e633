"""Converts objects of the mesh to documents of a manifest, for `-o yaml`. Invariant: applying such a document changes nothing."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from llamesh.cli.manifest.holdings import identity, kind_of
from llamesh.cli.manifest.kinds import API_VERSION, ID_ANNOTATION
from llamesh.v1 import contract_pb2, manifest_pb2, server_pb2


def spec_of(item: Any) -> Message:
    """Return the spec that declares the present state of an object."""
    kind = kind_of(item)
    if kind == "ModelServe":
        spec = server_pb2.ServerSpec()
        spec.CopyFrom(item.spec)
        spec.model_uuid, spec.model_name, spec.replicas = item.model_uuid, item.model_name, item.replicas
        return spec
    if kind == "Model":
        return manifest_pb2.ModelSpec(source=item.source, name=item.name, sha256=item.sha256)
    if kind == "Contract":
        return manifest_pb2.ContractSpec(max_concurrent_requests=item.max_concurrent_requests, models=item.models)
    if kind == "User":
        return manifest_pb2.UserSpec(role=item.role, contract=item.contract_id, disabled=item.disabled)
    return manifest_pb2.KeySpec(scopes=item.scopes, contract=item.contract_id)


def declared(item: Any) -> dict[str, Any]:
    """Return the document for an object. Its `status` is for readers; apply ignores it."""
    kind = kind_of(item)
    metadata: dict[str, Any] = {"name": _name(item)}
    if kind in {"Contract", "ModelServe", "Key"}:
        metadata["annotations"] = {ID_ANNOTATION: identity(item)}
    status = json_format.MessageToDict(item)
    status.pop("spec", None)
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "spec": json_format.MessageToDict(spec_of(item)),
        "status": status,
    }


def _name(item: Any) -> str:
    if isinstance(item, server_pb2.Server):
        # Kubernetes takes lower-case letters, digits and hyphens; several servers may share a served name.
        words = re.sub(r"[^a-z0-9]+", "-", item.model_name.lower()).strip("-")[:48].rstrip("-")
        return f"{words or 'server'}-{item.server_uuid[:8]}"
    if isinstance(item, contract_pb2.Contract | contract_pb2.Key):
        return item.display_name
    return identity(item)
