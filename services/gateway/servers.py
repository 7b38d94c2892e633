"""Servers as people ask for them: the contract service says whether it may be, the controller makes it so.

Invariant: nothing is declared or changed that the contract service did not allow.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncGenerator

from llamesh.kit.calls import validate
from llamesh.kit.channels import asking, call_options, passed_on
from llamesh.kit.errors import PREFIX, MeshError, Reason
from llamesh.v1 import contract_pb2, controller_pb2, download_pb2, gateway_pb2, server_pb2
from services.gateway.siblings import Siblings

DEFAULT_NAMESPACE = "default"
"""Where servers are that name no namespace."""

STOP_MARGIN = 10.0
"""Seconds that stopping may take beyond the drain, in which running requests are finished."""

REMEMBERED_REQUESTS = 1000
"""Answers to Serve that are kept for repetitions of the same request_id."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:/@+-]+")


class Servers:
    """The servers of the mesh, by way of the contract service and the controller."""

    def __init__(self, siblings: Siblings, drain_seconds: float) -> None:
        self._stop_deadline = drain_seconds + STOP_MARGIN
        self._contract = siblings.contract
        self._controller = siblings.controller
        self._catalogue = siblings.catalogue
        self._declared: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def serve(self, request: gateway_pb2.ServeRequest, subject: str) -> server_pb2.Server:
        """Declare a server. Raises the reason of the first rule that refuses it, and MODEL_NOT_FOUND."""
        first = await self._first_answer(subject, request.request_id)
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
        spec = server_pb2.ServerSpec(
            model_uuid=request.model_uuid,
            model_name=request.model_name or await self._default_name(request.model_uuid),
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
            engine_memory_bytes=engine_memory(checked.memory),
            shared_weights_bytes=checked.memory.shared_weights_bytes,
        )
        with asking("controller"):
            server = await self._controller.DeclareServer(declaration, **call_options())
        self._remember(subject, request.request_id, server.server_uuid)
        return server

    async def update(self, server_uuid: str, changes: server_pb2.ServerChanges, etag: str) -> server_pb2.Server:
        """Change a server, once the result is checked as a new server would be."""
        spec = (await self.get(server_uuid)).spec
        checked = await self._check(check_of_change(server_uuid, spec, changes))
        validate(changed(spec, changes))
        if changes.HasField("runtime_params") or changes.HasField("parameters"):
            changes.ClearField("runtime_params")
            changes.parameters.CopyFrom(checked.parameters)
        update = controller_pb2.UpdateDeclaredServerRequest(
            server_uuid=server_uuid,
            changes=changes,
            etag=etag,
            engine_memory_bytes=engine_memory(checked.memory),
            shared_weights_bytes=checked.memory.shared_weights_bytes,
        )
        with asking("controller"):
            return await self._controller.UpdateDeclaredServer(update, **call_options())

    async def scale(self, server_uuid: str, replicas: int) -> server_pb2.Server:
        """Change the number of engines."""
        return await self.update(server_uuid, server_pb2.ServerChanges(replicas=replicas), etag="")

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

    async def stop(self, server_uuid: str) -> server_pb2.Server:
        """Stop a server and forget it."""
        request = controller_pb2.RemoveServerRequest(server_uuid=server_uuid)
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
            async for lines in self._controller.ReadEngineLog(request, metadata=passed_on()):
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

    async def _first_answer(self, subject: str, request_id: str) -> server_pb2.Server | None:
        """The server that this request_id has declared before; None where it has not, or the server is gone.

        The controller knows request ids too; this is for the check before it, which could refuse the repetition because
        of the memory that the first server has taken.
        """
        known = self._declared.get((subject, request_id))
        if known is None:
            return None
        try:
            return await self.get(known)
        except MeshError as error:
            if error.reason != Reason.ERROR_REASON_SERVER_NOT_FOUND:
                raise
            del self._declared[(subject, request_id)]
            return None

    def _remember(self, subject: str, request_id: str, server_uuid: str) -> None:
        if request_id:
            self._declared[(subject, request_id)] = server_uuid
            if len(self._declared) > REMEMBERED_REQUESTS:
                self._declared.popitem(last=False)


def refusal(checked: contract_pb2.CheckResponse) -> MeshError:
    """The error for a check that did not allow: the first rule's reason and numbers, every rule's message."""
    first = checked.refusals[0] if checked.refusals else contract_pb2.Refusal(reason="INTERNAL")
    name = PREFIX + first.reason
    known = name in Reason.keys()  # noqa: SIM118 - the enum's wrapper is no mapping
    return MeshError(
        Reason.Value(name) if known else Reason.ERROR_REASON_INTERNAL,
        "; ".join(item.message for item in checked.refusals) or "refused without a reason",
        {**first.metadata, "decisionId": checked.decision_id},
    )


def engine_memory(estimate: server_pb2.MemoryEstimate) -> int:
    """Bytes that one engine takes."""
    return estimate.weights_bytes + estimate.kv_cache_bytes + estimate.overhead_bytes


def served_name(name: str, model_uuid: str) -> str:
    """The name that requests put into "model" for a model's own name; its id where the name has no usable character."""
    usable = _NOT_IN_NAMES.sub("-", name).lstrip("._:/@+-")[:128]
    return usable or model_uuid


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
