# ruff: noqa: N802 - the names are the contract's
"""Handlers of ControllerService. Each decodes a request, calls the store and the reconciler, and encodes the answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from controller.capacity import capacity, capacity_of_nodes
from controller.declared import Declaration, DeclaredServer, EngineMemory, RunState
from controller.declared_store import DeclaredStore
from controller.footprint import freed, released
from controller.reconcile import Reconciler
from controller.runtimes import EnginePhase, Place
from controller.status_cache import StatusCache
from controller.status_reading import is_routable
from controller.xds.serving import ControlPlane
from llamesh.kit.calls import Context
from llamesh.kit.config import Settings
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.holders import Holder, largest
from llamesh.kit.pages import open_pages
from llamesh.v1 import controller_pb2 as pb
from llamesh.v1 import server_pb2
from llamesh.v1.controller_pb2_grpc import ControllerServiceServicer
from llamesh.v1.server_pb2 import Server

_LOG_LINES = 100
_REMOVAL_SECONDS = 60.0
"""Seconds that RemoveServer waits for the engines to end if the caller sets no deadline."""
_REMOVAL_POLL_SECONDS = 0.25
"""Seconds after which RemoveServer reads the store again, because the removal of a server without a status causes no event."""
ROUTABLE_SECONDS = 5.0
"""Seconds that a call waits for Envoy to acknowledge a server's name before it answers anyway."""
_MARGIN_SECONDS = 1.0
"""Seconds before the caller's deadline at which a waiting call answers."""


class ControllerServicer(ControllerServiceServicer):
    """See the contract."""

    def __init__(
        self,
        settings: Settings,
        store: DeclaredStore,
        reconciler: Reconciler,
        statuses: StatusCache,
        runtime: Place,
        control: ControlPlane,
    ) -> None:
        self._reserve_bytes = settings.memory_reserve_bytes
        self._pages = open_pages(settings)
        self._store = store
        self._reconciler = reconciler
        self._statuses = statuses
        self._runtime = runtime
        self._control = control

    async def DeclareServer(self, request: pb.DeclareServerRequest, context: Context) -> Server:
        """Declare a server."""
        wanted = Declaration(
            request.spec,
            request.owner,
            EngineMemory(request.engine_memory_bytes, request.shared_weights_bytes),
            request.request_id,
            request.request_digest,
            request.owner_uid,
        )
        declared = await self._store.declare(wanted)
        return await self._routed(declared, context)

    async def FindRequestedServer(self, request: pb.FindRequestedServerRequest, context: Context) -> Server:
        """Return the server that an earlier request declared."""
        first = await self._store.requested(
            request.owner, request.request_id, request.request_digest, request.owner_uid
        )
        if first is None:
            raise MeshError(
                Reason.ERROR_REASON_SERVER_NOT_FOUND, f"no server was declared by the request {request.request_id}"
            )
        return self._reconciler.view(first)

    async def GetDeclaredServer(self, request: pb.GetDeclaredServerRequest, context: Context) -> Server:
        """Return one server."""
        return self._reconciler.view(await self._store.get(request.server_uuid))

    async def ListDeclaredServers(
        self, request: pb.ListDeclaredServersRequest, context: Context
    ) -> pb.ListDeclaredServersResponse:
        """List servers, one page at a time."""
        if request.model_uuid:
            # The caller deletes the model if there is no server.
            await self._store.catch_up()
        servers, token = await self._store.page(self._pages.query(request), request.model_uuid)
        return pb.ListDeclaredServersResponse(servers=map(self._reconciler.view, servers), next_page_token=token)

    async def UpdateDeclaredServer(self, request: pb.UpdateDeclaredServerRequest, context: Context) -> Server:
        """Change the fields that the request sets."""
        memory = EngineMemory(request.engine_memory_bytes, request.shared_weights_bytes)
        declared = await self._store.change(request.server_uuid, request.changes, request.etag, memory)
        if request.changes.HasField("model_name"):
            return await self._routed(declared, context)
        return self._changed(declared)

    async def RemoveServer(self, request: pb.RemoveServerRequest, context: Context) -> Server:
        """Stop the engines and remove the server."""
        await self._store.begin_removal(request.server_uuid, request.etag)
        last = self._changed(await self._store.get(request.server_uuid))
        remaining = context.time_remaining()
        seconds = _REMOVAL_SECONDS if remaining is None else remaining - _MARGIN_SECONDS
        gone = await self._removed(request.server_uuid, time.monotonic() + max(0.0, seconds))
        if gone:
            last.state = server_pb2.SERVER_STATE_STOPPED
            last.ready_replicas = 0
            del last.replica_statuses[:]
        return last

    async def SleepDeclaredServer(self, request: pb.SleepDeclaredServerRequest, context: Context) -> Server:
        """Stop the engines until a request or a call wakes the server."""
        await self._store.get(request.server_uuid)
        await self._store.set_run_state(request.server_uuid, RunState.ASLEEP_REQUESTED)
        return self._changed(await self._store.get(request.server_uuid))

    async def WakeDeclaredServer(self, request: pb.WakeDeclaredServerRequest, context: Context) -> Server:
        """Start the engines of a sleeping server."""
        await self._reconciler.wake(request.server_uuid)
        return await self._routed(await self._store.get(request.server_uuid), context)

    async def WatchServers(
        self, request: pb.WatchServersRequest, context: Context
    ) -> AsyncIterator[pb.WatchServersResponse]:
        """Stream the present servers, then every change."""
        async for response in self._statuses.watch():
            yield response

    async def GetCapacity(self, request: pb.GetCapacityRequest, context: Context) -> pb.Capacity:
        """Return the memory for engines."""
        if self._runtime.scales:
            if not (nodes := self._runtime.nodes()):
                words = "the nodes of the cluster are not known yet"
                raise MeshError(Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, words, {"component": "kubernetes"})
            return capacity_of_nodes(nodes, self._reserve_bytes)
        servers = await self._store.all()
        left_out = self._reconciler.claims(each for each in servers if each.server_uuid == request.without_server_uuid)
        others = [each for each in servers if each.server_uuid != request.without_server_uuid]
        claims = self._reconciler.claims(others)
        memory = self._runtime.memory()
        for claim in left_out:
            memory = released(memory, claim)
        alone = freed({each.server_uuid: claim for each, claim in zip(others, claims, strict=True)})
        holders = largest(
            Holder(each.server_uuid, each.spec.model_name or each.spec.model_uuid, alone[each.server_uuid])
            for each in others
        )
        return capacity(memory, self._reserve_bytes, claims, holders)

    async def GetMeshStatus(self, request: pb.GetMeshStatusRequest, context: Context) -> pb.MeshStatus:
        """Return the state of the data plane."""
        stats = self._control.stats
        running = sum(
            engine.phase is not EnginePhase.ENDED
            for server_uuid in self._runtime.servers()
            for engine in self._runtime.engines(server_uuid)
        )
        return pb.MeshStatus(
            connected_envoys=stats.connected,
            refused_configurations=stats.refused.total(),
            last_refusal=stats.last_nack.message if stats.last_nack else "",
            declared_servers=len(self._statuses.all()),
            running_engines=running,
        )

    async def ReadEngineLog(
        self, request: pb.ReadEngineLogRequest, context: Context
    ) -> AsyncIterator[pb.ReadEngineLogResponse]:
        """Stream the last lines of an engine's log, then new lines."""
        await self._store.get(request.server_uuid)
        batches = self._runtime.read_log(
            request.server_uuid, request.replica, request.tail_lines or _LOG_LINES, follow=request.follow
        )
        async for lines in batches:
            response = pb.ReadEngineLogResponse(lines=lines)
            response.time.GetCurrentTime()
            yield response

    def _changed(self, declared: DeclaredServer) -> Server:
        self._reconciler.changed(declared.server_uuid)
        return self._reconciler.view(declared)

    async def _routed(self, declared: DeclaredServer, context: Context) -> Server:
        """Return the server once Envoy routes its requests, because a client may send one as soon as it has the answer.

        Waits at most ROUTABLE_SECONDS, and not at all if no Envoy is connected. The condition Routable has the result.
        """
        name, generation = declared.server_uuid, declared.generation
        self._reconciler.changed(name)
        if self._control.stats.connected:
            remaining = context.time_remaining()
            left = math.inf if remaining is None else max(0.0, remaining - _MARGIN_SECONDS)
            await self._statuses.until(
                name,
                lambda server: server is not None and is_routable(server, generation),
                min(ROUTABLE_SECONDS, left),
            )
        return self._reconciler.view(declared)

    async def _removed(self, server_uuid: str, deadline: float) -> bool:
        """Wait until a server is removed completely. Returns False if it is not by the deadline."""
        with self._statuses.listen((server_uuid,)) as changed:
            while await self._store.find(server_uuid) is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(left, _REMOVAL_POLL_SECONDS))
                changed.clear()
        return True
