"""Converts objects of the custom resource ModelServe from and to the values of the controller. No I/O.

Invariant: what people write is in `spec`, what only the controller may write is in `status`; annotations carry what a call has said about
itself and the controller's decision whether the server sleeps.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from controller.declared import ACCEPTED, Declaration, DeclaredServer, RunState, Verdict
from llamesh.durations import seconds
from llamesh.enum_words import full_name
from llamesh.kit.kubernetes_api import Object
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server, ServerSpec

GROUP, VERSION = "llamesh.dev", "v1alpha1"
PLURAL = "modelserves"
OWNER, REQUESTER = f"{GROUP}/owner", f"{GROUP}/requester"
REQUEST_ID, REQUEST_DIGEST = f"{GROUP}/request-id", f"{GROUP}/request-digest"
RUN_STATE = f"{GROUP}/run-state"
SERVER_LABEL = f"{GROUP}/server"
"""Label of everything that belongs to a server: its uid."""
CONDITION_ACCEPTED = "Accepted"
MAX_REPLICA_STATUSES = 64
"""Maximum number of replicas in a status, as the definition bounds it."""
_STATUS_WORDS = {
    server_pb2.CONDITION_STATUS_TRUE: "True",
    server_pb2.CONDITION_STATUS_FALSE: "False",
    server_pb2.CONDITION_STATUS_UNKNOWN: "Unknown",
}
_NOT_CHECKED = Verdict(False, "NotChecked", "the contract service has not checked this spec yet", known=False)
_DURATION = "google.protobuf.Duration"
_MAX_WORDS = 40


class UnreadableError(Exception):
    """An object that this release cannot read. The text is for people."""


def path(namespace: str, name: str = "", subresource: str = "") -> str:
    """Return the path of all objects of a namespace, of one object, or of a subresource of it."""
    parts = [f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/{PLURAL}", name, subresource]
    return "/".join(filter(None, parts))


def declared(item: Object) -> DeclaredServer:
    """Return the declared server of an object. Raises UnreadableError."""
    metadata, status = item["metadata"], item.get("status") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    spec = ServerSpec()
    try:
        json_format.ParseDict(_spelled(item["spec"], ServerSpec.DESCRIPTOR), spec, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreadableError(f"its spec cannot be read: {error}") from error
    spec.namespace = metadata["namespace"]
    spec.model_name = spec.model_name or spec.model_uuid
    created = datetime.fromisoformat(metadata["creationTimestamp"])
    state = annotations.get(RUN_STATE, RunState.AWAKE)
    return DeclaredServer(
        server_uuid=metadata["uid"],
        spec=spec,
        generation=metadata["generation"],
        owner=annotations.get(OWNER, ""),
        requester=annotations.get(REQUESTER, ""),
        request_id=annotations.get(REQUEST_ID, ""),
        request_digest=annotations.get(REQUEST_DIGEST, ""),
        engine_memory_bytes=int(status.get("engineMemoryBytes", 0)),
        shared_weights_bytes=int(status.get("sharedWeightsBytes", 0)),
        run_state=RunState(state) if state in set(RunState) else RunState.AWAKE,
        removing="deletionTimestamp" in metadata,
        create_time=created,
        update_time=created,
        verdict=verdict(item),
    )


def verdict(item: Object) -> Verdict:
    """Return what the contract service has said of the present generation of an object."""
    for condition in (item.get("status") or {}).get("conditions") or []:
        if condition["type"] == CONDITION_ACCEPTED:
            if (
                condition.get("observedGeneration") != item["metadata"]["generation"]
                or condition["status"] == "Unknown"
            ):
                return _NOT_CHECKED
            if condition["status"] == "True":
                return ACCEPTED
            return Verdict(False, condition.get("reason", ""), condition.get("message", ""))
    return _NOT_CHECKED


def manifest(wanted: Declaration, unique: str) -> Object:
    """Return the object that declares a server for a caller. `unique` makes its name so, unless the call has a request id."""
    written = ServerSpec()
    written.CopyFrom(wanted.spec)
    written.ClearField("namespace")
    said = {
        OWNER: wanted.owner,
        REQUESTER: wanted.requester,
        REQUEST_ID: wanted.request_id,
        REQUEST_DIGEST: wanted.request_digest,
    }
    name = name_for(wanted.spec, wanted.requester, wanted.request_id, unique)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ModelServe",
        "metadata": {"name": name, "annotations": {key: value for key, value in said.items() if value}},
        "spec": spec_json(written),
    }


def spec_json(spec: ServerSpec) -> Object:
    """Return a spec as an object has it. Numbers of 64 bits do not occur in it, so its JSON is that of Kubernetes."""
    return json_format.MessageToDict(spec)


def merge_patch(before: Object, after: Object) -> Object:
    """Return the JSON merge patch that turns a value into another: null removes a field, lists are replaced whole."""
    patch = {name: after.get(name) for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(present := before.get(name), dict):
            patch[name] = merge_patch(present, value)
    return patch


def name_for(spec: ServerSpec, requester: str, request_id: str, unique: str) -> str:
    """Return the name of the object that declares a server for a caller.

    It depends on the caller and the request id, so a repeated request meets its own object; without a request id on `unique`.
    """
    words = re.sub(r"[^a-z0-9]+", "-", (spec.model_name or spec.model_uuid).lower()).strip("-")[:_MAX_WORDS].rstrip("-")
    key = f"{len(requester)}:{requester}{request_id}" if request_id else unique
    return f"{words or 'server'}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def status(server: Server, selector: str) -> Object:
    """Return the status of an object, all but the condition Accepted and the memory, which `accepted_status` writes."""
    made = json_format.MessageToDict(server)
    for name in ("spec", "generation", "etag", "createTime", "updateTime", "owner"):
        made.pop(name, None)
    made["state"] = server_pb2.ServerState.Name(server.state).removeprefix("SERVER_STATE_")
    made.setdefault("readyReplicas", 0)
    made.setdefault("replicas", 0)
    made["selector"] = selector
    made["conditions"] = [_condition(each) for each in server.conditions if each.type != CONDITION_ACCEPTED]
    made["replicaStatuses"] = made.get("replicaStatuses", [])[:MAX_REPLICA_STATUSES]
    for replica, entry in zip(made["replicaStatuses"], server.replica_statuses, strict=False):
        replica["state"] = server_pb2.ReplicaState.Name(entry.state).removeprefix("REPLICA_STATE_")
    return made


def status_patch(item: Object, status: Object) -> Object:
    """Return what is applied to write a status. The uid keeps it from a later object of the same name."""
    metadata = item["metadata"]
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "ModelServe",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
        "status": status,
    }


def accepted_condition(said: Verdict, generation: int, before: Object | None, now: datetime) -> Object:
    """Return the condition Accepted. Its transition time stays if its status does."""
    word = ("True" if said.accepted else "False") if said.known else "Unknown"
    moment = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": CONDITION_ACCEPTED,
        "status": word,
        "reason": said.reason,
        "message": said.message,
        "observedGeneration": generation,
        "lastTransitionTime": before["lastTransitionTime"] if before and before["status"] == word else moment,
    }


def _condition(condition: server_pb2.Condition) -> Object:
    return {
        "type": condition.type,
        "status": _STATUS_WORDS[condition.status],
        "reason": condition.reason,
        "message": condition.message,
        "observedGeneration": condition.observed_generation,
        "lastTransitionTime": condition.last_transition_time.ToDatetime().strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _spelled(value: Mapping[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """Return the JSON of a message with enums and durations as protobuf's JSON writes them."""
    fields = {field.json_name: field for field in descriptor.fields}
    return {name: _spelled_field(each, fields[name]) if name in fields else each for name, each in value.items()}


def _spelled_field(value: Any, field: FieldDescriptor) -> Any:
    if field.enum_type is not None:
        return full_name(field, str(value))
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return value
    if field.message_type.full_name == _DURATION:
        return f"{seconds(str(value)):.9f}s"
    if field.is_repeated:
        return [_spelled(each, field.message_type) for each in value]
    return _spelled(value, field.message_type)
