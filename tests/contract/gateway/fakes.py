"""FAKES of the members that the gateway calls: they keep a handful of objects in memory and answer as the contracts say.

They stand on real sockets behind the kit's call layer. What the real services decide is tested with the real services.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.message import Message

from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.identity import current_identity
from llamesh.kit.serving import Member
from llamesh.v1 import (
    admission_pb2,
    admission_pb2_grpc,
    contract_pb2,
    contract_pb2_grpc,
    controller_pb2,
    controller_pb2_grpc,
    download_pb2,
    download_pb2_grpc,
    gateway_pb2,
    model_pb2,
    server_pb2,
)


class Changes:
    """What watchers are told: each gets its own queue."""

    def __init__(self) -> None:
        self._queues: list[asyncio.Queue[Message]] = []

    def tell(self, change: Message) -> None:
        for queue in self._queues:
            queue.put_nowait(change)

    @property
    def watchers(self) -> int:
        return len(self._queues)

    async def follow(self) -> AsyncIterator[Any]:
        queue: asyncio.Queue[Message] = asyncio.Queue()
        self._queues.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._queues.remove(queue)


def known(models: Mapping[str, model_pb2.Model], model_uuid: str) -> model_pb2.Model:
    """A model of the catalogue; MODEL_NOT_FOUND."""
    if model_uuid not in models:
        raise MeshError(Reason.ERROR_REASON_MODEL_NOT_FOUND, "no such model", {"modelUuid": model_uuid})
    return models[model_uuid]


class FakeContract(contract_pb2_grpc.ContractServiceServicer, admission_pb2_grpc.AdmissionServiceServicer):
    """Allows everything unless `refusals` is set. `during_check` is awaited while a check is under way."""

    def __init__(self, models: Mapping[str, model_pb2.Model]) -> None:
        self.models = models
        """The catalogue that checks read."""
        self.during_check: Callable[[contract_pb2.CheckRequest], Awaitable[None]] | None = None
        self.refusals: list[contract_pb2.Refusal] = []
        self.checks: list[contract_pb2.CheckRequest] = []
        self.callers: list[str] = []
        self.grants: list[admission_pb2.GrantRequest] = []

    def register(self, member: Member) -> None:
        contract_pb2_grpc.add_ContractServiceServicer_to_server(self, member.server)
        admission_pb2_grpc.add_AdmissionServiceServicer_to_server(self, member.server)

    async def Check(self, request, context):
        identity = current_identity.get()
        assert identity is not None
        self.callers.append(identity.subject)
        self.checks.append(request)
        if self.during_check is not None:
            await self.during_check(request)
        if request.runtime_params == "--bad":
            raise MeshError(Reason.ERROR_REASON_PARAMETER_UNKNOWN, "--bad is not a parameter", {"parameter": "--bad"})
        model = known(self.models, request.model_uuid)
        parameters = server_pb2.RuntimeParameters()
        parameters.CopyFrom(request.parameters)
        if request.runtime_params:
            parameters.ctx_size = int(request.runtime_params.split()[1])
        return contract_pb2.CheckResponse(
            allowed=not self.refusals,
            refusals=self.refusals,
            parameters=parameters,
            decision_id="dec_1",
            model_name=model.name,
            memory=server_pb2.MemoryEstimate(
                weights_bytes=100, kv_cache_bytes=20, overhead_bytes=3, replicas=2, total_bytes=246
            ),
        )

    async def GetContract(self, request, context):
        if request.contract_id != "ctr_1":
            raise MeshError(Reason.ERROR_REASON_CONTRACT_NOT_FOUND, "no", {"contractId": request.contract_id})
        return contract_pb2.Contract(contract_id="ctr_1")

    async def Grant(self, request, context):
        self.grants.append(request)
        scopes = {
            gateway_pb2.ROLE_ADMIN: ["admin", "manage", "infer:*"],
            gateway_pb2.ROLE_USER: ["manage", "infer:*"],
            gateway_pb2.ROLE_INFERENCE: ["infer:*"],
        }[request.role]
        return admission_pb2.GrantResponse(scopes=scopes, contract_id=request.contract_id)

    async def WatchRevocations(self, request, context):
        yield admission_pb2.WatchRevocationsResponse(synced=True)
        await asyncio.Event().wait()


class FakeDownload(download_pb2_grpc.CatalogueServiceServicer):
    """A catalogue in memory."""

    def __init__(self) -> None:
        self.models: dict[str, model_pb2.Model] = {}
        self.downloads: dict[str, download_pb2.Download] = {}
        self.used_by: dict[str, str] = {}
        """The server that keeps each model from being deleted."""
        self.changes = Changes()
        self.read: list[str] = []
        """The models that were read one by one."""
        self.listed: list[download_pb2.ListCatalogueModelsRequest] = []

    def register(self, member: Member) -> None:
        download_pb2_grpc.add_CatalogueServiceServicer_to_server(self, member.server)

    def add(self, model_uuid: str, name: str = "m.gguf") -> None:
        model = model_pb2.Model(model_uuid=model_uuid, name=name)
        self.models[model_uuid] = model
        self.changes.tell(download_pb2.WatchCatalogueResponse(model=model))

    def progress(self, model_uuid: str, bytes_done: int) -> None:
        download = download_pb2.Download(model_uuid=model_uuid, bytes_done=bytes_done)
        self.downloads[model_uuid] = download
        self.changes.tell(download_pb2.WatchCatalogueResponse(download=download))

    def remove_download(self, model_uuid: str) -> None:
        del self.downloads[model_uuid]
        self.changes.tell(download_pb2.WatchCatalogueResponse(removed_download_uuid=model_uuid))

    async def GetCatalogueModel(self, request, context):
        self.read.append(request.model_uuid)
        return known(self.models, request.model_uuid)

    async def ListCatalogueModels(self, request, context):
        self.listed.append(request)
        return download_pb2.ListCatalogueModelsResponse(
            models=self.models.values(), next_page_token=f"{request.page_size}{request.page_token}"
        )

    async def ChangeCatalogueModelAliases(self, request, context):
        self.models[request.model_uuid].aliases[:] = request.add
        return self.models[request.model_uuid]

    async def DeleteCatalogueModel(self, request, context):
        if used_by := self.used_by.get(request.model_uuid):
            metadata = {"modelUuid": request.model_uuid, "servers": used_by}
            raise MeshError(Reason.ERROR_REASON_MODEL_IN_USE, f"used by {used_by}", metadata)
        model = self.models.pop(request.model_uuid)
        self.changes.tell(download_pb2.WatchCatalogueResponse(removed_model_uuid=request.model_uuid))
        return model

    async def WatchCatalogue(self, request, context):
        follow = self.changes.follow()
        first = asyncio.ensure_future(anext(follow))
        await asyncio.sleep(0)
        for model in list(self.models.values()):
            yield download_pb2.WatchCatalogueResponse(model=model)
        for download in list(self.downloads.values()):
            yield download_pb2.WatchCatalogueResponse(download=download)
        yield download_pb2.WatchCatalogueResponse(synced=True)
        try:
            yield await first
            async for change in follow:
                yield change
        finally:
            first.cancel()


class FakeController(controller_pb2_grpc.ControllerServiceServicer):
    """Servers in memory; none ever runs."""

    def __init__(self) -> None:
        self.servers: dict[str, server_pb2.Server] = {}
        self.declared: list[controller_pb2.DeclareServerRequest] = []
        self.updates: list[controller_pb2.UpdateDeclaredServerRequest] = []
        self.envoys = 1
        self.removal_seconds = 0.0
        self.lines = ["one", "two"]
        self.changes = Changes()
        self.log_readers = 0

    def register(self, member: Member) -> None:
        controller_pb2_grpc.add_ControllerServiceServicer_to_server(self, member.server)

    def put(self, server: server_pb2.Server) -> server_pb2.Server:
        self.servers[server.server_uuid] = server
        copy = server_pb2.Server()
        copy.CopyFrom(server)
        self.changes.tell(controller_pb2.WatchServersResponse(server=copy))
        return server

    def _server(self, server_uuid: str) -> server_pb2.Server:
        if server_uuid not in self.servers:
            raise MeshError(Reason.ERROR_REASON_SERVER_NOT_FOUND, "no such server", {"serverUuid": server_uuid})
        return self.servers[server_uuid]

    def _requested(self, request: Any) -> server_pb2.Server | None:
        for known, server in zip(self.declared, self.servers.values(), strict=False):
            of_known, of_request = (each.owner_uid or each.owner for each in (known, request))
            if request.request_id and (of_known, known.request_id) == (of_request, request.request_id):
                if known.request_digest != request.request_digest:
                    raise MeshError(Reason.ERROR_REASON_REQUEST_ID_REUSED, "used before")
                return server
        return None

    async def FindRequestedServer(self, request, context):
        found = self._requested(request)
        if found is None:
            raise MeshError(Reason.ERROR_REASON_SERVER_NOT_FOUND, "no such request")
        return found

    async def DeclareServer(self, request, context):
        if first := self._requested(request):
            return first
        self.declared.append(request)
        return self.put(
            server_pb2.Server(
                server_uuid=f"srv-{len(self.servers) + 1}",
                model_uuid=request.spec.model_uuid,
                model_name=request.spec.model_name,
                state=server_pb2.SERVER_STATE_STARTING,
                spec=request.spec,
                owner=request.owner,
                etag="1",
            )
        )

    async def GetDeclaredServer(self, request, context):
        return self._server(request.server_uuid)

    async def ListDeclaredServers(self, request, context):
        found = [item for item in self.servers.values() if request.model_uuid in ("", item.model_uuid)]
        return controller_pb2.ListDeclaredServersResponse(servers=found, next_page_token=request.page_token)

    async def UpdateDeclaredServer(self, request, context):
        server = self._server(request.server_uuid)
        if request.etag not in ("", server.etag):
            raise MeshError(Reason.ERROR_REASON_ETAG_MISMATCH, "changed since", {"etag": server.etag})
        self.updates.append(request)
        if request.changes.HasField("replicas"):
            server.spec.replicas = request.changes.replicas
        if request.changes.HasField("parameters"):
            server.spec.parameters.CopyFrom(request.changes.parameters)
        server.etag = str(int(server.etag) + 1)
        return self.put(server)

    async def RemoveServer(self, request, context):
        self.removal_seconds = context.time_remaining()
        server = self._server(request.server_uuid)
        if request.etag not in ("", server.etag):
            raise MeshError(Reason.ERROR_REASON_ETAG_MISMATCH, "changed since", {"etag": server.etag})
        del self.servers[request.server_uuid]
        server.state = server_pb2.SERVER_STATE_STOPPED
        self.changes.tell(controller_pb2.WatchServersResponse(removed=server))
        return server

    async def SleepDeclaredServer(self, request, context):
        server = self._server(request.server_uuid)
        server.state = server_pb2.SERVER_STATE_SLEEPING
        return self.put(server)

    async def WakeDeclaredServer(self, request, context):
        server = self._server(request.server_uuid)
        server.state = server_pb2.SERVER_STATE_STARTING
        return self.put(server)

    async def GetMeshStatus(self, request, context):
        return controller_pb2.MeshStatus(connected_envoys=self.envoys)

    async def ReadEngineLog(self, request, context):
        self._server(request.server_uuid)
        self.log_readers += 1
        try:
            yield controller_pb2.ReadEngineLogResponse(lines=self.lines[-(request.tail_lines or 100) :])
            if request.follow:
                await asyncio.Event().wait()
        finally:
            self.log_readers -= 1

    async def WatchServers(self, request, context):
        follow = self.changes.follow()
        first = asyncio.ensure_future(anext(follow))
        await asyncio.sleep(0)
        for server in list(self.servers.values()):
            yield controller_pb2.WatchServersResponse(server=server)
        yield controller_pb2.WatchServersResponse(synced=True)
        try:
            yield await first
            async for change in follow:
                yield change
        finally:
            first.cancel()
