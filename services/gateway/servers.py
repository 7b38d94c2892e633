"""Creates, changes and stops servers: asks the contract service whether a server is allowed, then declares it at the controller.

Invariant: nothing is declared or changed without a check by the contract service, and a change applies only to the state that was checked
(etag). The gateway stores nothing: the controller stores which server each request_id has declared, across restarts and replicas.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator

from google.protobuf import json_format

from llamesh.kit.channels import asking, call_options, forwarded_metadata
from llamesh.kit.errors import PREFIX, FieldViolation, MeshError, Reason, invalid_field
from llamesh.kit.spec_changes import apply_changes, check_etag, clear_defaults
from llamesh.kit.validation import validate
from llamesh.names import DEFAULT_NAMESPACE, served_name
from llamesh.v1 import contract_pb2, controller_pb2, gateway_pb2, server_pb2
from services.gateway.declarations import Declarations
from services.gateway.members import Members

STOP_MARGIN = 10.0
"""Seconds that a stop may take in addition to the drain."""

MAX_ATTEMPTS = 5
"""Maximum number of attempts to check and make a change if other callers change the server at the same time."""

FIELDS = {"TOO_MANY_REPLICAS": "replicas", "NAMESPACE_NOT_ALLOWED": "namespace"}
"""Invalid field of a request by the reason of a refusal, unless its metadata has the `field`. DOES_NOT_FIT has no single field."""


class Servers:
    """Servers of the mesh."""

    def __init__(self, members: Members, drain_seconds: float, namespace: str = DEFAULT_NAMESPACE) -> None:
        """`namespace`: that of a server for which none is given."""
        self._stop_deadline = drain_seconds + STOP_MARGIN
        self._namespace = namespace
        self._contract = members.contract
        self._controller = members.controller
        self._declarations = Declarations(members, self._stop_deadline)

    async def serve(self, request: gateway_pb2.ServeRequest, subject: str, uid: str) -> server_pb2.Server:
        """Declare a server for a user. Each user (`uid`) has its own request_ids; `subject` is the name that is shown.

        Raises:
            MeshError: the reason of the first rule that refuses the server, MODEL_NOT_FOUND, or REQUEST_ID_REUSED.
        """
        digest = digest_of(request, self._namespace)
        first = await self._first_answer(subject, uid, request.request_id, digest)
        if first is not None:
            return await self._declarations.repeat(first)
        namespace = request.namespace or self._namespace
        checked = await self._check(
            contract_pb2.CheckRequest(
                model_uuid=request.model_uuid,
                replicas=request.replicas,
                runtime_params=request.runtime_params,
                parameters=request.parameters if request.HasField("parameters") else None,
                namespace=namespace,
                serve=True,
                placement=request.placement if request.HasField("placement") else None,
            )
        )
        name = pop_alias(checked.parameters, request.model_name)
        spec = server_pb2.ServerSpec(
            model_uuid=request.model_uuid,
            model_name=name or served_name(checked.model_name, request.model_uuid),
            replicas=request.replicas or 1,
            parameters=checked.parameters,
            idle_sleep=request.idle_sleep if request.HasField("idle_sleep") else None,
            wake_budget=request.wake_budget if request.HasField("wake_budget") else None,
            namespace=namespace,
            metered=request.metered,
            placement=request.placement if request.HasField("placement") else None,
        )
        validate(spec)
        clear_defaults(spec)
        declaration = controller_pb2.DeclareServerRequest(
            spec=spec,
            request_id=request.request_id,
            owner=subject,
            owner_uid=uid,
            engine_memory_bytes=engine_memory(checked.memory),
            shared_weights_bytes=checked.memory.shared_weights_bytes,
            request_digest=digest if request.request_id else "",
        )
        return await self._declarations.declare(declaration)

    async def update(self, server_uuid: str, changes: server_pb2.ServerChanges, etag: str) -> server_pb2.Server:
        """Check the changed server as a new one would be, then change it.

        Raises ETAG_MISMATCH if the server has another etag, or if other callers keep changing it.
        """
        attempts = 1 if etag else MAX_ATTEMPTS
        for attempt in range(attempts):
            present = await self.get(server_uuid)
            check_etag(present.etag, etag)
            try:
                return await self._change(present, changes)
            except MeshError as error:
                # Two changes that are allowed one by one may not be allowed together, so check again with the present state.
                if error.reason != Reason.ERROR_REASON_ETAG_MISMATCH or attempt == attempts - 1:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _change(self, present: server_pb2.Server, changes: server_pb2.ServerChanges) -> server_pb2.Server:
        """Check a server as it would be after a change, and change it; ETAG_MISMATCH if the server changes between the two."""
        checked = await self._check(check_of_change(present.server_uuid, present.spec, changes))
        wanted = server_pb2.ServerChanges()
        wanted.CopyFrom(changes)
        if name := pop_alias(checked.parameters, changes.model_name):
            wanted.model_name = name
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
        validate(apply_changes(present.spec, update.changes))
        return await self._declarations.change(present, update)

    async def scale(self, server_uuid: str, replicas: int, etag: str) -> server_pb2.Server:
        """Change the number of engines; errors as in `update`."""
        return await self.update(server_uuid, server_pb2.ServerChanges(replicas=replicas), etag)

    async def get(self, server_uuid: str) -> server_pb2.Server:
        """Return a server; SERVER_NOT_FOUND."""
        request = controller_pb2.GetDeclaredServerRequest(server_uuid=server_uuid)
        with asking("controller"):
            return await self._controller.GetDeclaredServer(request, **call_options())

    async def page(self, size: int, token: str) -> controller_pb2.ListDeclaredServersResponse:
        """Return a page of servers, by create time and id."""
        request = controller_pb2.ListDeclaredServersRequest(page_size=size, page_token=token)
        with asking("controller"):
            return await self._controller.ListDeclaredServers(request, **call_options())

    async def sleep(self, server_uuid: str) -> server_pb2.Server:
        """Put a server to sleep: stop its engines until the next request."""
        request = controller_pb2.SleepDeclaredServerRequest(server_uuid=server_uuid)
        with asking("controller"):
            return await self._controller.SleepDeclaredServer(request, **call_options())

    async def wake(self, server_uuid: str) -> server_pb2.Server:
        """Wake a server: start its engines."""
        request = controller_pb2.WakeDeclaredServerRequest(server_uuid=server_uuid)
        with asking("controller"):
            return await self._controller.WakeDeclaredServer(request, **call_options())

    async def stop(self, server_uuid: str, etag: str) -> server_pb2.Server:
        """Stop and remove a server; ETAG_MISMATCH if it has another etag."""
        request = controller_pb2.RemoveServerRequest(server_uuid=server_uuid, etag=etag)
        with asking("controller"):
            return await self._controller.RemoveServer(request, **call_options(self._stop_deadline))

    async def log(
        self, server_uuid: str, replica: int, tail_lines: int, follow: bool
    ) -> AsyncGenerator[controller_pb2.ReadEngineLogResponse, None]:
        """Yield the last lines of an engine's log; with `follow`, then new lines until the caller leaves."""
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

    async def _first_answer(self, subject: str, uid: str, request_id: str, digest: str) -> server_pb2.Server | None:
        """Return the server that this request_id has already declared; None if there is none. REQUEST_ID_REUSED.

        This comes before the check, which could refuse the repetition for the memory that the first server has taken.
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
    """Return the error for a refused check: reason and numbers of the first rule, messages of all."""
    first = checked.refusals[0] if checked.refusals else contract_pb2.Refusal(reason="INTERNAL")
    fields = ((item.metadata.get("field") or FIELDS.get(item.reason), item.message) for item in checked.refusals)
    name = PREFIX + first.reason
    known = name in Reason.keys()  # noqa: SIM118 - the enum's wrapper is no mapping
    return MeshError(
        Reason.Value(name) if known else Reason.ERROR_REASON_INTERNAL,
        "; ".join(item.message for item in checked.refusals) or "refused without a reason",
        {**first.metadata, "decisionId": checked.decision_id},
        tuple(FieldViolation(field, message) for field, message in fields if field),
    )


def engine_memory(estimate: server_pb2.MemoryEstimate) -> int:
    """Return the memory of one engine in bytes."""
    return estimate.weights_bytes + estimate.kv_cache_bytes + estimate.overhead_bytes


def pop_alias(parameters: server_pb2.RuntimeParameters, model_name: str) -> str:
    """Return the name of a server from its field or from --alias, which is removed; INVALID_FIELD if they differ."""
    alias = parameters.alias
    parameters.ClearField("alias")
    if alias and model_name and alias != model_name:
        raise invalid_field("model_name", f"is {model_name!r}, and --alias says {alias!r}")
    return model_name or alias


def digest_of(request: gateway_pb2.ServeRequest, namespace: str) -> str:
    """Return the digest of a request without its request_id; missing fields count as their defaults, of which `namespace` is one."""
    fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
    fields.pop("request_id", None)
    fields.setdefault("replicas", 1)
    fields.setdefault("namespace", namespace)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def check_of_change(
    server_uuid: str, spec: server_pb2.ServerSpec, changes: server_pb2.ServerChanges
) -> contract_pb2.CheckRequest:
    """Return the check request for the changed server; it replaces the present server."""
    placed = changes if changes.HasField("placement") else spec
    request = contract_pb2.CheckRequest(
        model_uuid=spec.model_uuid,
        replicas=changes.replicas if changes.HasField("replicas") else spec.replicas,
        namespace=spec.namespace,
        replaces_server_uuid=server_uuid,
        serve=True,
        placement=placed.placement if placed.HasField("placement") else None,
    )
    if changes.HasField("runtime_params"):
        request.runtime_params = changes.runtime_params
    if changes.HasField("parameters"):
        request.parameters.CopyFrom(changes.parameters)
    elif not changes.HasField("runtime_params"):
        request.parameters.CopyFrom(spec.parameters)
    return request
