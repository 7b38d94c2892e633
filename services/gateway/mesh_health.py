"""grpc.health.v1 at the front door: the health of the mesh in the standard protocol, for load balancers, probes and gRPC clients.

The empty name means the whole mesh, which is SERVING as long as no component is DOWN or STARTING. Other names are those of components
and public services.

Invariant: calls need no token, so their cost is bounded: a Check uses the cached report, and the number of watches is limited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import grpc
from grpc_health.v1 import health_pb2

from llamesh.kit.errors import DETAILS_KEY, MeshError, Reason
from llamesh.kit.health_names import OF_MESH
from llamesh.v1 import gateway_pb2
from services.gateway.health import HealthReporter

MAX_WATCHES = 64
"""Maximum number of open watches of all callers together."""
EVERY = 1.0
"""Seconds between two checks of a watch."""
SERVICES = {
    "llamesh.v1.GatewayService": "gateway",
    "llamesh.v1.ContractService": "contract",
    "llamesh.v1.DownloadService": "download",
    "llamesh.v1.QuantService": "quant",
}
"""Public services and the members that serve them. A mesh may run without the last one."""

_USABLE = (gateway_pb2.HEALTH_STATE_OK, gateway_pb2.HEALTH_STATE_DEGRADED)

_Status = health_pb2.HealthCheckResponse
_Context = grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse]


class MeshHealthServicer:
    """Serves the protocol from `health`. When `stopping` is set, watches send NOT_SERVING and end."""

    def __init__(self, health: HealthReporter, stopping: asyncio.Event, every: float = EVERY) -> None:
        self._health = health
        self._stopping = stopping
        self._every = every
        self._watches = 0

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the protocol under the mesh's name."""
        decode, encode = health_pb2.HealthCheckRequest.FromString, _Status.SerializeToString
        handlers = {
            "Check": grpc.unary_unary_rpc_method_handler(self.check, decode, encode),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch, decode, encode),
            "List": grpc.unary_unary_rpc_method_handler(
                self.list, health_pb2.HealthListRequest.FromString, health_pb2.HealthListResponse.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(OF_MESH, handlers),))

    async def check(self, request: health_pb2.HealthCheckRequest, context: _Context) -> health_pb2.HealthCheckResponse:
        """Return the state of one name; NOT_FOUND if it is unknown."""
        known = await self._states()
        if request.service not in known:
            names = ", ".join(name for name in sorted(known) if name)
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"the mesh has no such part or service: ask for {names}, or for no name"
            )
        return _Status(status=known[request.service])

    async def list(self, _request: health_pb2.HealthListRequest, _context: object) -> health_pb2.HealthListResponse:
        """Return the states of all names."""
        known = await self._states()
        return health_pb2.HealthListResponse(statuses={name: _Status(status=state) for name, state in known.items()})

    async def watch(
        self, request: health_pb2.HealthCheckRequest, context: _Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the present state of one name and each change; SERVICE_UNKNOWN while the name is unknown."""
        if self._watches >= MAX_WATCHES:
            error = MeshError(
                Reason.ERROR_REASON_TOO_MANY_WATCHES,
                f"{MAX_WATCHES} callers watch the health of the mesh already",
                {"limit": MAX_WATCHES},
            )
            await context.abort(error.code, error.message, ((DETAILS_KEY, error.status().SerializeToString()),))
        self._watches += 1
        try:
            last = None
            while not self._stopping.is_set():
                state = (await self._states()).get(request.service, _Status.SERVICE_UNKNOWN)
                if state != last:
                    yield _Status(status=state)
                    last = state
                try:
                    async with asyncio.timeout(self._every):
                        await self._stopping.wait()
                except TimeoutError:
                    continue
            if last != _Status.NOT_SERVING:
                yield _Status(status=_Status.NOT_SERVING)
        finally:
            self._watches -= 1

    async def _states(self) -> Mapping[str, health_pb2.HealthCheckResponse.ServingStatus.ValueType]:
        report = await self._health.report()
        known = {part.name: _serving(part.status == gateway_pb2.HEALTH_STATE_OK) for part in report.components}
        known |= {service: known[part] for service, part in SERVICES.items() if part in known}
        return known | {"": _serving(report.status in _USABLE)}


def _serving(well: bool) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    return _Status.SERVING if well else _Status.NOT_SERVING
