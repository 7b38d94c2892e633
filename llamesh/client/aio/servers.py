# ruff: noqa: ASYNC109 a timeout here is the deadline of a gRPC call, which the server learns of
"""Declared servers."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from llamesh.client import errors
from llamesh.client.aio.part import AsyncPart
from llamesh.client.parameters import Parameters, combined
from llamesh.client.references import Model, Server, model_uuid_of, server_uuid_of, set_seconds, why_not_ready
from llamesh.client.server_names import own_server, server_of_model
from llamesh.client.services import GATEWAY
from llamesh.runtime_parameters import Value
from llamesh.v1 import gateway_pb2, server_pb2

if TYPE_CHECKING:
    from llamesh.client.aio.client import AsyncClient


class AsyncServers(AsyncPart):
    """Declared servers."""

    def __init__(self, mesh: AsyncClient) -> None:
        super().__init__(mesh.transport)
        self._mesh = mesh

    async def serve(
        self,
        model: Model,
        *,
        name: str = "",
        replicas: int = 1,
        runtime_params: str = "",
        parameters: Parameters | None = None,
        idle_sleep: float | None = None,
        wake_budget: float | None = None,
        namespace: str = "",
        metered: bool = False,
        placement: server_pb2.Placement | None = None,
        request_id: str = "",
        timeout: float | None = None,
        **named: Value | None,
    ) -> server_pb2.Server:
        """Serve a model. Runtime parameters by name (`ctx_size=2048`, `cache_type_k="q8_0"`), or as llama.cpp's flags in `runtime_params`.

        `parameters` takes runtime parameters as a mapping or a message. A parameter whose name is an argument of this call can
        only be given there: `timeout` here is the deadline of the call, `parameters={"timeout": 60}` that of the server's answers.
        `placement` says where engine pods run; a mesh on one machine refuses it.
        The call carries a `request_id`, so that it may be repeated and still declares one server.
        """
        request = gateway_pb2.ServeRequest(
            model_uuid=model_uuid_of(model),
            model_name=name,
            replicas=replicas,
            runtime_params=runtime_params,
            parameters=combined(parameters, named),
            namespace=namespace,
            metered=metered,
            placement=placement,
            request_id=request_id or uuid.uuid4().hex,
        )
        set_seconds(request.idle_sleep, idle_sleep)
        set_seconds(request.wake_budget, wake_budget)
        return await self._call(f"{GATEWAY}/Serve", request, server_pb2.Server, timeout)

    def list(self) -> AsyncIterator[server_pb2.Server]:
        """Yield every declared server; pages are fetched as needed."""
        request = gateway_pb2.ListServersRequest()
        return self.pages(f"{GATEWAY}/ListServers", request, gateway_pb2.ListServersResponse, "servers")

    async def get(self, server: Server, *, timeout: float | None = None) -> server_pb2.Server:
        """Return one server by its id."""
        request = gateway_pb2.GetServerRequest(server_uuid=server_uuid_of(server))
        return await self._call(f"{GATEWAY}/GetServer", request, server_pb2.Server, timeout)

    async def find(self, name: str) -> str:
        """Resolve to the id of a server: its id, its name or the beginning of its id, else any name of the model that it alone serves.

        Another word is returned unchanged. Raises AmbiguousNameError if several servers match, NotServedError for a model without a server.
        """
        servers = [server async for server in self.list()]
        found = own_server(name, servers)
        if found is None:
            found = server_of_model(name, [model async for model in self._mesh.models.list()], servers)
        return name if found is None else found.server_uuid

    async def update(
        self, server: Server, changes: server_pb2.ServerChanges, *, etag: str = "", timeout: float | None = None
    ) -> server_pb2.Server:
        """Change the fields that are set in `changes`. With an `etag`, only if nobody else has changed the server since."""
        request = gateway_pb2.UpdateServerRequest(server_uuid=server_uuid_of(server), changes=changes, etag=etag)
        return await self._call(f"{GATEWAY}/UpdateServer", request, server_pb2.Server, timeout)

    async def scale(
        self, server: Server, replicas: int, *, etag: str = "", timeout: float | None = None
    ) -> server_pb2.Server:
        """Change the number of replicas. With an `etag`, only if nobody else has changed the server since."""
        request = gateway_pb2.ScaleServerRequest(server_uuid=server_uuid_of(server), replicas=replicas, etag=etag)
        return await self._call(f"{GATEWAY}/ScaleServer", request, server_pb2.Server, timeout)

    async def sleep(self, server: Server, *, timeout: float | None = None) -> server_pb2.Server:
        """Stop the engines until the next request."""
        request = gateway_pb2.SleepServerRequest(server_uuid=server_uuid_of(server))
        return await self._call(f"{GATEWAY}/SleepServer", request, server_pb2.Server, timeout)

    async def wake(self, server: Server, *, timeout: float | None = None) -> server_pb2.Server:
        """Start the engines of a sleeping server."""
        request = gateway_pb2.WakeServerRequest(server_uuid=server_uuid_of(server))
        return await self._call(f"{GATEWAY}/WakeServer", request, server_pb2.Server, timeout)

    async def stop(self, server: Server, *, etag: str = "", timeout: float | None = None) -> server_pb2.Server:
        """Stop a server and delete its declaration. With an `etag`, only if nobody else has changed the server since."""
        request = gateway_pb2.StopRequest(server_uuid=server_uuid_of(server), etag=etag)
        return await self._call(f"{GATEWAY}/Stop", request, server_pb2.Server, timeout)

    async def wait_ready(
        self,
        server: Server,
        *,
        timeout: float | None = 120.0,
        on_change: Callable[[server_pb2.Server], None] | None = None,
    ) -> server_pb2.Server:
        """Wait until all engines are ready. EngineFailed if engines fail, DeadlineExceeded after `timeout` seconds.

        Raises FailedPrecondition if the server is asleep, because its engines start only at the next request or `wake`.
        """
        wanted = server_uuid_of(server)
        seen = server_pb2.Server(server_uuid=wanted)
        try:
            async for event in self._mesh.watch(servers=[wanted], kinds=["SERVERS"], patient=True, timeout=timeout):
                kind = event.WhichOneof("event")
                if kind == "server":
                    seen = event.server
                    if on_change:
                        on_change(seen)
                    if seen.state == server_pb2.SERVER_STATE_READY:
                        return seen
                    if seen.state == server_pb2.SERVER_STATE_FAILING:
                        raise errors.of_reason("ENGINE_FAILED", why_not_ready(seen), metadata={"serverUuid": wanted})
                    if seen.state == server_pb2.SERVER_STATE_SLEEPING:
                        # A watch may be behind a `wake` that has already been answered; the server itself is not.
                        seen = await self.get(wanted)
                        if seen.state == server_pb2.SERVER_STATE_SLEEPING:
                            raise _asleep(seen)
                elif kind == "stopped_server":
                    raise errors.of_reason("SERVER_NOT_FOUND", f"the server {wanted} was stopped")
                elif kind == "synced":
                    await self.get(wanted)  # Raises if the server does not exist: no wait helps.
        except TimeoutError as error:
            words = f"{wanted} is not ready after {timeout:g} s: {why_not_ready(seen)}"
            raise errors.of_reason("DEADLINE_EXCEEDED", words) from error
        raise errors.MeshError(f"the watch of {wanted} ended")

    async def logs(
        self, server: Server, *, replica: int = 0, tail: int = 100, follow: bool = False
    ) -> AsyncIterator[str]:
        """Yield the last lines of an engine's log, and with `follow` each new line."""
        request = gateway_pb2.ReadServerLogRequest(
            server_uuid=server_uuid_of(server), replica=replica, tail_lines=tail, follow=follow
        )
        stream = self._transport.stream(f"{GATEWAY}/ReadServerLog", request, gateway_pb2.ReadServerLogResponse)
        async for part in stream:
            for line in part.lines:
                yield line


def _asleep(server: server_pb2.Server) -> errors.MeshError:
    error: errors.MeshError = errors.FailedPrecondition(
        f"no engine of {server.server_uuid} runs: {why_not_ready(server)}", metadata={"serverUuid": server.server_uuid}
    )
    error.remedy = f"Send a request, or wake it: `llamesh wake {server.server_uuid}`."
    return error
