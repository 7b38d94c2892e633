"""A mesh of labelled fakes: in-process servicers that answer from memory, for the client and the command."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from llamesh.client.parameters import choices, kind
from llamesh.runtime_parameters import Parameter, Value
from llamesh.v1 import (
    contract_pb2,
    contract_pb2_grpc,
    download_pb2,
    download_pb2_grpc,
    gateway_pb2,
    gateway_pb2_grpc,
    model_pb2,
    quant_pb2_grpc,
    server_pb2,
)


def refuse(
    context: Any, code: grpc.StatusCode, reason: str, message: str, metadata: dict[str, str] | None = None
) -> None:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="llamesh", metadata=metadata))
    status = status_pb2.Status(code=code.value[0], message=message, details=[packed])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def a_value(parameter: Parameter) -> Value:
    """Something to give a runtime parameter, as llama.cpp's command line has it."""
    values: dict[type, Value] = {bool: True, int: 7, float: 0.5, str: "chatml"}
    if parameter.model:
        return "m1"
    return choices(parameter)[-1] if choices(parameter) else values[kind(parameter)]


class FakeGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Answers from memory and counts what it is asked."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.listed: list[gateway_pb2.ListModelsRequest] = []
        self.unavailable = 0
        self.refusal: tuple[Any, ...] | None = None
        """What `refuse` is given, for every call."""
        self.servers: list[server_pb2.Server] = []
        self.hung: threading.Event | None = None
        """While it is not set, lists of servers are not answered."""
        self.stopped: list[str] = []
        self.updated: list[gateway_pb2.UpdateServerRequest] = []
        self.declared: list[gateway_pb2.ServeRequest] = []
        self.serve_requests: list[str] = []
        self.runtime_params: list[str] = []
        self.served: dict[str, server_pb2.Server] = {}
        self.watches: list[gateway_pb2.WatchRequest] = []
        self.watch_scripts: list[list[gateway_pb2.WatchResponse | grpc.StatusCode | str]] = []

    def ListModels(self, request: Any, context: Any) -> gateway_pb2.ListModelsResponse:
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        self.listed.append(request)
        start = int(request.page_token or 0)
        models = [model_pb2.Model(model_uuid=f"m{number}", name=f"name{number}") for number in range(start, start + 2)]
        return gateway_pb2.ListModelsResponse(models=models, next_page_token=str(start + 2) if start < 4 else "")

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:
        if self.unavailable:
            self.unavailable -= 1
            refuse(context, grpc.StatusCode.UNAVAILABLE, "COMPONENT_UNAVAILABLE", "the download service restarts")
        if request.model_uuid == "none":
            refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no model none")
        return model_pb2.Model(model_uuid=request.model_uuid, name="Found")

    def DeleteModel(self, request: Any, context: Any) -> model_pb2.Model:
        self.unavailable += 1
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        raise AssertionError

    def Serve(self, request: gateway_pb2.ServeRequest, context: Any) -> server_pb2.Server:
        self.declared.append(request)
        self.serve_requests.append(request.request_id)
        self.runtime_params.append(request.runtime_params)
        server = self.served.setdefault(
            request.request_id, server_pb2.Server(server_uuid=f"s{len(self.served)}", model_uuid=request.model_uuid)
        )
        server.spec.parameters.CopyFrom(request.parameters)
        if request.HasField("placement"):
            server.spec.placement.CopyFrom(request.placement)
        server.runtime_params = request.runtime_params
        if len(self.serve_requests) == 1:
            # It was declared, but the answer is lost.
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
        return server

    def ListServers(self, request: Any, context: Any) -> gateway_pb2.ListServersResponse:
        if self.hung:
            self.hung.wait(30)
        if self.refusal:
            refuse(context, *self.refusal)
        return gateway_pb2.ListServersResponse(servers=self.servers)

    def Stop(self, request: Any, context: Any) -> server_pb2.Server:
        self.stopped.append(request.server_uuid)
        return server_pb2.Server(server_uuid=request.server_uuid, state=server_pb2.SERVER_STATE_STOPPED)

    def GetServer(self, request: Any, context: Any) -> server_pb2.Server:
        for server in self.servers:
            if server.server_uuid == request.server_uuid:
                return server
        refuse(context, grpc.StatusCode.NOT_FOUND, "SERVER_NOT_FOUND", f"no server {request.server_uuid}")
        raise AssertionError

    def UpdateServer(self, request: gateway_pb2.UpdateServerRequest, context: Any) -> server_pb2.Server:
        self.updated.append(request)
        changed = server_pb2.Server()
        changed.CopyFrom(next(item for item in self.servers if item.server_uuid == request.server_uuid))
        if request.changes.HasField("parameters"):
            changed.spec.parameters.CopyFrom(request.changes.parameters)
        if request.changes.HasField("idle_sleep"):
            changed.spec.idle_sleep.CopyFrom(request.changes.idle_sleep)
        return changed

    def CreateToken(self, request: Any, context: Any) -> gateway_pb2.CreateTokenResponse:
        self.tokens.append(dict(context.invocation_metadata()).get("authorization", ""))
        if request.password != "right":
            refuse(context, grpc.StatusCode.UNAUTHENTICATED, "WRONG_CREDENTIALS", "wrong user name or password")
        return gateway_pb2.CreateTokenResponse(access_token="fresh", token_type="bearer", expires_in=60)

    def UpdateUser(self, request: Any, context: Any) -> gateway_pb2.User:
        return gateway_pb2.User(username=request.username)

    def Watch(self, request: gateway_pb2.WatchRequest, context: Any) -> Iterator[gateway_pb2.WatchResponse]:
        self.watches.append(request)
        for step in self.watch_scripts.pop(0) if self.watch_scripts else []:
            if isinstance(step, grpc.StatusCode):
                context.abort(step, "the connection broke")
            elif isinstance(step, str):
                refuse(context, grpc.StatusCode.OUT_OF_RANGE, step, "too much has changed")
            else:
                yield step


class FakeDownloads(download_pb2_grpc.DownloadServiceServicer):
    """Takes every download and leaves it queued."""

    def __init__(self) -> None:
        self.requests: list[download_pb2.StartDownloadRequest] = []
        self._started: dict[str, download_pb2.Download] = {}
        self.found = download_pb2.SearchHubResponse()
        self.searched = download_pb2.SearchHubRequest()
        self.searches = 0
        self.unsearchable = ""
        self.store = download_pb2.Store(kind=download_pb2.STORE_KIND_S3)

    def StartDownload(self, request: Any, context: Any) -> download_pb2.Download:
        self.requests.append(request)
        queued = download_pb2.Download(model_uuid=request.model_uuid, state=download_pb2.DOWNLOAD_STATE_QUEUED)
        queued.create_time.seconds = len(self.requests)
        self._started[request.model_uuid] = queued
        return queued

    def GetDownload(self, request: Any, context: Any) -> download_pb2.Download:
        if request.model_uuid not in self._started:
            refuse(context, grpc.StatusCode.NOT_FOUND, "DOWNLOAD_NOT_FOUND", f"no download of {request.model_uuid}")
        return self._started[request.model_uuid]

    def SearchHub(self, request: Any, context: Any) -> download_pb2.SearchHubResponse:
        self.searched = request
        self.searches += 1
        if self.unsearchable:
            refuse(context, grpc.StatusCode.UNAVAILABLE, "SOURCE_UNAVAILABLE", self.unsearchable)
        return self.found

    def GetStore(self, request: Any, context: Any) -> download_pb2.Store:
        return self.store

    def ListDownloads(self, request: Any, context: Any) -> download_pb2.ListDownloadsResponse:
        return download_pb2.ListDownloadsResponse(downloads=self._started.values())

    def PauseDownload(self, request: Any, context: Any) -> download_pb2.Download:
        return self.GetDownload(request, context)

    def ResumeDownload(self, request: Any, context: Any) -> download_pb2.Download:
        return self.GetDownload(request, context)

    def CancelDownload(self, request: Any, context: Any) -> download_pb2.Download:
        return self.GetDownload(request, context)

    def DeleteDownload(self, request: Any, context: Any) -> download_pb2.Download:
        return self._started.pop(request.model_uuid)


class FakeContracts(contract_pb2_grpc.ContractServiceServicer):
    """Refuses every check, in words, with an estimate of which `shared` MiB of weights are shared."""

    shared = 92

    def Check(self, request: Any, context: Any) -> contract_pb2.CheckResponse:
        refusal = contract_pb2.Refusal(reason="DOES_NOT_FIT", message="too big")
        mebibyte, replicas = 2**20, request.replicas or 1
        memory = server_pb2.MemoryEstimate(
            weights_bytes=92 * mebibyte,
            kv_cache_bytes=180 * mebibyte,
            overhead_bytes=97 * mebibyte,
            replicas=replicas,
            total_bytes=(self.shared + (369 - self.shared) * replicas) * mebibyte,
            shared_weights_bytes=self.shared * mebibyte,
        )
        return contract_pb2.CheckResponse(
            allowed=False, refusals=[refusal], parameters=request.parameters, memory=memory
        )


@contextmanager
def fake_mesh(
    gateway: FakeGateway, downloads: FakeDownloads, quant: quant_pb2_grpc.QuantServiceServicer | None = None
) -> Iterator[str]:
    """The fakes at an address. A mesh need not have a Quant service."""
    server = grpc.server(ThreadPoolExecutor(8))
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(gateway, server)
    download_pb2_grpc.add_DownloadServiceServicer_to_server(downloads, server)
    contract_pb2_grpc.add_ContractServiceServicer_to_server(FakeContracts(), server)
    if quant is not None:
        quant_pb2_grpc.add_QuantServiceServicer_to_server(quant, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
