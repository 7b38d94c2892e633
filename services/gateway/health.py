"""How the mesh does, part by part. It always answers: a part that does not answer is what it reports.

It needs no token, so an answer is shared by all who ask within a second, and messages name no paths or addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2

from llamesh.kit.serving import DATABASE_SERVICE
from llamesh.v1 import controller_pb2, gateway_pb2
from services.gateway.siblings import Siblings

PATIENCE = 1.0
"""Seconds that a part may take for its answer."""

FRESH = 1.0
"""Seconds for which an answer is given again."""

State: TypeAlias = gateway_pb2.HealthState.ValueType


class _NotSaidYetError(Exception):
    """A member answers, but has not said yet how a part of it is."""


class HealthReporter:
    """Asks every part of the mesh. `clock` gives seconds that never go back, `database_answers` says what the gateway itself sees."""

    def __init__(
        self, siblings: Siblings, clock: Callable[[], float], database_answers: Callable[[], bool] = lambda: True
    ) -> None:
        self._siblings = siblings
        self._clock = clock
        self._database_answers = database_answers
        self._version = _version()
        self._turn = asyncio.Lock()
        self._last: tuple[float, gateway_pb2.Health] | None = None

    async def report(self) -> gateway_pb2.Health:
        """The state of the mesh now."""
        async with self._turn:
            if self._last is None or self._clock() - self._last[0] > FRESH:
                health = await self._ask_all()
                self._last = (self._clock(), health)
            return self._last[1]

    async def _ask_all(self) -> gateway_pb2.Health:
        own = gateway_pb2.ComponentHealth(name="gateway", status=gateway_pb2.HEALTH_STATE_OK)
        asking = (*(self._ask(name) for name in self._siblings.health), self._ask_envoy(), self._ask_database())
        others, store = await asyncio.gather(asyncio.gather(*asking), self._ask_store())
        components = [own, *others, *store]
        return gateway_pb2.Health(
            status=worst(item.status for item in components), components=components, version=self._version
        )

    async def _ask(self, name: str) -> gateway_pb2.ComponentHealth:
        try:
            answer = await self._siblings.health[name].Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        except grpc.aio.AioRpcError:
            return _component(name, gateway_pb2.HEALTH_STATE_DOWN, "does not answer")
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return _component(name, gateway_pb2.HEALTH_STATE_DEGRADED, "is starting or stopping")
        return _component(name, gateway_pb2.HEALTH_STATE_OK, "")

    async def _ask_store(self) -> list[gateway_pb2.ComponentHealth]:
        """What the download service says of the object store; nothing where it does not answer, which is reported as itself."""
        try:
            well, accepted = await asyncio.gather(
                self._part_is_well("download", "store"), self._part_is_well("download", "store.credentials")
            )
        except _NotSaidYetError:
            # It listens before it has looked: until then nobody knows.
            return [_component("store", gateway_pb2.HEALTH_STATE_DEGRADED, "is being looked at for the first time")]
        if well is None:
            return []
        if well:
            return [_component("store", gateway_pb2.HEALTH_STATE_OK, "")]
        refused = "the object store refuses MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or its folder this user"
        away = (
            "the object store cannot be used: it is stopped or cut off, MINIO_ENDPOINT is wrong, or its folder is gone;"
            " models are neither fetched nor found there"
        )
        message = refused if accepted is False else away
        # Models that were fetched to this machine are served on.
        return [_component("store", gateway_pb2.HEALTH_STATE_DEGRADED, message)]

    async def _part_is_well(self, member: str, part: str) -> bool | None:
        """What a member's health says of a part that it depends on; None where it does not answer. _NotSaidYetError where it answers
        that it knows of no such part."""
        request = health_pb2.HealthCheckRequest(service=part)
        try:
            answer = await self._siblings.health[member].Check(request, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise _NotSaidYetError from error
            return None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _ask_database(self) -> gateway_pb2.ComponentHealth:
        """What each member says of its tables. One that says nothing is reported as itself."""
        seen = await asyncio.gather(*(self._database_of(name) for name in self._siblings.health))
        own = [] if self._database_answers() else ["gateway"]
        missing = own + [name for name, well in zip(self._siblings.health, seen, strict=True) if well is False]
        if missing:
            return _component("database", gateway_pb2.HEALTH_STATE_DOWN, f"does not answer: {', '.join(missing)}")
        return _component("database", gateway_pb2.HEALTH_STATE_OK, "")

    async def _database_of(self, member: str) -> bool | None:
        try:
            return await self._part_is_well(member, DATABASE_SERVICE)
        except _NotSaidYetError:
            return None

    async def _ask_envoy(self) -> gateway_pb2.ComponentHealth:
        try:
            mesh = await self._siblings.controller.GetMeshStatus(
                controller_pb2.GetMeshStatusRequest(), timeout=PATIENCE
            )
        except grpc.aio.AioRpcError:
            return _component("envoy", gateway_pb2.HEALTH_STATE_UNSPECIFIED, "not known while the controller is down")
        if not mesh.connected_envoys:
            return _component("envoy", gateway_pb2.HEALTH_STATE_DOWN, "no Envoy is connected to the controller")
        return _component("envoy", gateway_pb2.HEALTH_STATE_OK, "")


def worst(states: Iterable[State]) -> State:
    """The worst of some states; what is not known counts as DEGRADED."""
    return max(state or gateway_pb2.HEALTH_STATE_DEGRADED for state in states)


def _component(name: str, status: State, message: str) -> gateway_pb2.ComponentHealth:
    return gateway_pb2.ComponentHealth(name=name, status=status, message=message)


def _version() -> str:
    try:
        return version("llamesh")
    except PackageNotFoundError:
        return "unknown"
