"""Servers as people ask for them: the contract service says whether it may be, the controller makes it so.

Invariant: nothing is declared or changed that the contract service did not allow: a change is made only to the very state that it was
checked with. Nothing is remembered here: what a request_id has declared before, the controller knows, after a restart and in all replicas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator

from google.protobuf import json_format

from llamesh.kit.channels import asking, call_options, forwarded_metadata
from llamesh.kit.errors import PREFIX, FieldViolation, MeshError, Reason, invalid_field
from llamesh.kit.validation import validate
from llamesh.names import DEFAULT_NAMESPACE, served_name
from llamesh.v1 import contract_pb2, controller_pb2, download_pb2, gateway_pb2, server_pb2
from services.gateway.siblings import Siblings

STOP_MARGIN = 10.0
"""Seconds that stopping may take beyond the drain, in which running requests are finished."""

CHANGE_ATTEMPTS = 5
"""How often a change is checked anew because the server was changed by others meanwhile."""

FIELDS = {"TOO_MANY_REPLICAS": "replicas", "NAMESPACE_NOT_ALLOWED": "namespace"}
"""Fields of a request that are at fault, by the reason of a refusal. Of what does not fit, no single one is."""


class Servers:
    """The servers of the mesh, by way of the contract service and the controller."""

    def __init__(self, siblings: Siblings, drain_seconds: float) -> None:
        self._stop_deadline = drain_seconds + STOP_MARGIN
        self._contract = siblings.contract
        self._controller = siblings.controller
        self._catalogue = siblings.catalogue

    async def serve(self, request: gateway_pb2.ServeRequest, subject: str, uid: str) -> server_pb2.Server:
        """Declare a server for a user: its name is shown, its uid tells its request_id from those of others.

        Raises the reason of the first rule that refuses it, MODEL_NOT_FOUND, and REQUEST_ID_REUSED.
        """
        digest = digest_of(request)
        first = await self._first_answer(subject, uid, request.request_id, digest)
        if first is not None:
            return first
        namespace = request.namespace or DEFAULT_NAMESPACE
        checked = await self._check(
            contract_pb2.CheckRequest(
                model_uuid=request.model_uuid,
                replicas=request.replicas,
                runtime_params=request.runtime_params,
                parameters=request.parameters if request.HasField("parameters") else None,
                namespace=namespace,
                serve=True,
            )
        )
        name = taken_alias(checked.parameters, request.model_name)
        spec = server_pb2.ServerSpec(
            model_uuid=request.model_uuid,
            model_name=name or await self._default_name(request.model_uuid),
            replicas=request.replicas or 1,
            parameters=checked.parameters,
            idle_sleep=request.idle_sleep if request.HasField("idle_sleep") else None,
            wake_budget=request.wake_budget if request.HasField("wake_budget") else None,
            namespace=namespace,
            metered=request.metered,
        )
        validate(spec)
        declaration = controller_pb2.DeclareServerRequest(
            spec=spec,
            request_id=request.request_id,
            owner=subject,
            owner_uid=uid,
            engine_memory_bytes=engine_memory(checked.memory),
            shared_weights_bytes=checked.memory.shared_weights_bytes,
            request_digest=digest if request.request_id else "",
        )
        with asking("controller"):
            return await self._controller.DeclareServer(declaration, **call_options())

    async def update(self, server_uuid: str, changes: server_pb2.ServerChanges, etag: str) -> server_pb2.Server:
        """Change a server, once the result is checked as a new server would be.

        ETAG_MISMATCH where it is not as the caller has read it, or is changed by others again and again.
        """
        attempts = 1 if etag else CHANGE_ATTEMPTS
        for attempt in range(attempts):
            present = await self.get(server_uuid)
            if etag not in ("", present.etag):
                raise _changed_since(present, etag)
            try:
                return await self._change(present, changes)
            except MeshError as error:
                # Two changes, each of them allowed, may not be allowed together: what is there now is checked anew.
                if error.reason != Reason.ERROR_REASON_ETAG_MISMATCH or attempt == attempts - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _change(self, present: server_pb2.Server, changes: server_pb2.ServerChanges) -> server_pb2.Server:
        """Check what a server would be after a change and make it so; ETAG_MISMATCH if it is not as it was checked any more."""
        checked = await self._check(check_of_change(present.server_uuid, present.spec, changes))
        wanted = server_pb2.ServerChanges()
        wanted.CopyFrom(changes)
        if name := taken_alias(checked.parameters, changes.model_name):
            wanted.model_name = name
        validate(changed(present.spec, wanted))
        update = controller_pb2.UpdateDeclaredServerRequest(
            server_uuid=present.server_uuid,
            changes=wanted,
            etag=present.etag,
            engine_memory_bytes=engine_memory(checked.memory),
            shared_weights_bytes=checked.memory.shared_weights_bytes,
        )
        if changes.HasField("runtime_params") or changes.HasField("parameters"):
            update.changes.ClearField("runtime_params")
            update.changes.parameters.CopyFrom(checked.parameters)
        with asking("controller"):
            return await self._controller.UpdateDeclaredServer(update, **call_options())

    async def scale(self, server_uuid: str, replicas: int, etag: str) -> server_pb2.Server:
        """Change the number of engines; errors as in `update`."""
        return await self.update(server_uuid, server_pb2.ServerChanges(replicas=replicas), etag)

    async def get(self, server_uuid: str) -> server_pb2.Server:
        """One server; SERVER_NOT_FOUND where there is none."""
        request = controller_pb2.GetDeclaredServerRequest(server_uuid=server_uuid)
        with asking("controller"):
            return await self._controller.GetDeclaredServer(request, **call_options())

    async def page(self, size: int, token: str) -> controller_pb2.ListDeclaredServersResponse:
        """Some servers, by create time and id."""
        request = controller_pb2.ListDeclaredServersRequest(page_size=size, page_token=token)
        with asking("controller"):
            return await self._controller.ListDeclaredServers(request, **call_options())

    async def sleep(self, server_uuid: str) -> server_pb2.Server:
        """Stop the engines until the next request."""
        request = controller_pb2.SleepDeclaredServerRequest(server_uuid=server_uuid)
        with asking("controller"):
            return await self._controller.SleepDeclaredServer(request, **call_options())

    async def wake(self, server_uuid: str) -> server_pb2.Server:
        """Start the engines."""
        request = controller_pb2.WakeDeclaredServerRequest(server_uuid=server_uuid)
        with asking("controller"):
            return await self._controller.WakeDeclaredServer(request, **call_options())

    async def stop(self, server_uuid: str, etag: str) -> server_pb2.Server:
        """Stop a server and forget it; ETAG_MISMATCH where it is not as the caller has read it."""
        request = controller_pb2.RemoveServerRequest(server_uuid=server_uuid, etag=etag)
        with asking("controller"):
            return await self._controller.RemoveServer(request, **call_options(self._stop_deadline))

    async def log(
        self, server_uuid: str, replica: int, tail_lines: int, follow: bool
    ) -> AsyncGenerator[controller_pb2.ReadEngineLogResponse, None]:
        """An engine's last lines, then, with `follow`, the new ones until the reader leaves."""
        request = controller_pb2.ReadEngineLogRequest(
            server_uuid=server_uuid, replica=replica, tail_lines=tail_lines, follow=follow
        )
        with asking("controller"):
            async for lines in self._controller.ReadEngineLog(request, metadata=forwarded_metadata()):
                yield lines

    async def _check(self, request: contract_pb2.CheckRequest) -> contract_pb2.CheckResponse:
        with asking("contract"):
            checked = await self._contract.Check(request, **call_options())
        if not checked.allowed:
            raise refusal(checked)
        return checked

    async def _default_name(self, model_uuid: str) -> str:
        request = download_pb2.GetCatalogueModelRequest(model_uuid=model_uuid)
        with asking("download"):
            model = await self._catalogue.GetCatalogueModel(request, **call_options())
        return served_name(model.name, model_uuid)

    async def _first_answer(self, subject: str, uid: str, request_id: str, digest: str) -> server_pb2.Server | None:
        """The server that this request has declared before; None where it has not, or the server is gone. REQUEST_ID_REUSED.

        Asked before the check, which could refuse the repetition because of the memory that the first server has taken.
        """
        if not request_id:
            return None
        request = controller_pb2.FindRequestedServerRequest(
            owner=subject, owner_uid=uid, request_id=request_id, request_digest=digest
        )
        try:
            with asking("controller"):
                return await self._controller.FindRequestedServer(request, **call_options())
        except MeshError as error:
            if error.reason != Reason.ERROR_REASON_SERVER_NOT_FOUND:
                raise
            return None


def refusal(checked: contract_pb2.CheckResponse) -> MeshError:
    """The error for a check that did not allow: the first rule's reason and numbers, every rule's message."""
    first = checked.refusals[0] if checked.refusals else contract_pb2.Refusal(reason="INTERNAL")
    name = PREFIX + first.reason
    known = name in Reason.keys()  # noqa: SIM118 - the enum's wrapper is no mapping
    return MeshError(
        Reason.Value(name) if known else Reason.ERROR_REASON_INTERNAL,
        "; ".join(item.message for item in checked.refusals) or "refused without a reason",
        {**first.metadata, "decisionId": checked.decision_id},
        tuple(FieldViolation(FIELDS[item.reason], item.message) for item in checked.refusals if item.reason in FIELDS),
    )


def engine_memory(estimate: server_pb2.MemoryEstimate) -> int:
    """Bytes that one engine takes."""
    return estimate.weights_bytes + estimate.kv_cache_bytes + estimate.overhead_bytes


def taken_alias(parameters: server_pb2.RuntimeParameters, model_name: str) -> str:
    """The name that a server is to have, by its own field or by --alias, which is taken out; INVALID_FIELD where both differ."""
    alias = parameters.alias
    parameters.ClearField("alias")
    if alias and model_name and alias != model_name:
        raise invalid_field("model_name", f"is {model_name!r}, and --alias says {alias!r}")
    return model_name or alias


def digest_of(request: gateway_pb2.ServeRequest) -> str:
    """What tells one request from another, whatever its request_id: fields that are left out count as their default."""
    said = json_format.MessageToDict(request, preserving_proto_field_name=True)
    said.pop("request_id", None)
    said.setdefault("replicas", 1)
    said.setdefault("namespace", DEFAULT_NAMESPACE)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _changed_since(present: server_pb2.Server, etag: str) -> MeshError:
    return MeshError(
        Reason.ERROR_REASON_ETAG_MISMATCH,
        f"the server has changed: its etag is {present.etag}, not {etag}",
        {"etag": present.etag},
    )


def check_of_change(
    server_uuid: str, spec: server_pb2.ServerSpec, changes: server_pb2.ServerChanges
) -> contract_pb2.CheckRequest:
    """What to ask the contract service before a change: the server as it would be, in place of what it is."""
    request = contract_pb2.CheckRequest(
        model_uuid=spec.model_uuid,
        replicas=changes.replicas if changes.HasField("replicas") else spec.replicas,
        namespace=spec.namespace,
        replaces_server_uuid=server_uuid,
        serve=True,
    )
    if changes.HasField("runtime_params"):
        request.runtime_params = changes.runtime_params
    if changes.HasField("parameters"):
        request.parameters.CopyFrom(changes.parameters)
    elif not changes.HasField("runtime_params"):
        request.parameters.CopyFrom(spec.parameters)
    return request


def changed(spec: server_pb2.ServerSpec, changes: server_pb2.ServerChanges) -> server_pb2.ServerSpec:
    """The spec with what is set in `changes`; parameters, which the contract service checks, left out."""
    result = server_pb2.ServerSpec()
    result.CopyFrom(spec)
    for name in ("replicas", "metered", "model_name"):
        if changes.HasField(name):
            setattr(result, name, getattr(changes, name))
    if changes.HasField("idle_sleep"):
        result.idle_sleep.CopyFrom(changes.idle_sleep)
    if changes.HasField("wake_budget"):
        result.wake_budget.CopyFrom(changes.wake_budget)
    return result
