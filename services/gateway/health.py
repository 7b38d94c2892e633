"""Health of the mesh, component by component. A component that does not answer is reported as DOWN, or as STARTING if
it has not answered since the gateway itself started. The report itself never fails.

The report needs no token. So it is cached for a second, and its messages contain no paths or addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2

from llamesh.kit.channels import START_SECONDS
from llamesh.kit.member_tls import HEALTH_PART
from llamesh.kit.serving import DATABASE_SERVICE
from llamesh.names import GATEWAY
from llamesh.v1 import controller_pb2, gateway_pb2
from services.gateway.members import Members

PATIENCE = 1.0
"""Seconds that one component may take to answer."""

FRESH = 1.0
"""Seconds for which a report is cached."""

_CERTIFICATE = (
    "its new certificate files cannot be used, or its certificate has expired; `llamesh logs {name}` has the cause"
)

_FROM_BEST_TO_WORST = (
    gateway_pb2.HEALTH_STATE_OK,
    gateway_pb2.HEALTH_STATE_DEGRADED,
    gateway_pb2.HEALTH_STATE_STARTING,
    gateway_pb2.HEALTH_STATE_DOWN,
)

State: TypeAlias = gateway_pb2.HealthState.ValueType


class _NotSaidYetError(Exception):
    """A member answers, but it has not yet reported one of its dependencies."""


class HealthReporter:
    """Asks every component. `clock` is monotonic; `database_answers` is the result of the gateway's own probe, and
    `certificate_is_used` whether its own certificate files can be used."""

    def __init__(
        self,
        members: Members,
        clock: Callable[[], float],
        database_answers: Callable[[], bool] = lambda: True,
        certificate_is_used: Callable[[], bool] = lambda: True,
    ) -> None:
        self._members = members
        self._clock = clock
        self._database_answers = database_answers
        self._certificate_is_used = certificate_is_used
        self._version = _version()
        self._turn = asyncio.Lock()
        self._began = clock()
        self._answered: set[str] = set()
        """Components that have been OK since the gateway started."""
        self._last: tuple[float, gateway_pb2.Health] | None = None

    async def report(self) -> gateway_pb2.Health:
        """Return the present health of the mesh."""
        async with self._turn:
            if self._last is None or self._clock() - self._last[0] > FRESH:
                health = await self._ask_all()
                self._last = (self._clock(), health)
            return self._last[1]

    async def _ask_all(self) -> gateway_pb2.Health:
        own = _component(GATEWAY, gateway_pb2.HEALTH_STATE_OK, "")
        if not self._certificate_is_used():
            own = _component(GATEWAY, gateway_pb2.HEALTH_STATE_DEGRADED, _CERTIFICATE.format(name=GATEWAY))
        asking = (*(self._ask(name) for name in self._members.health), self._ask_envoy(), self._ask_database())
        others, store = await asyncio.gather(asyncio.gather(*asking), self._ask_store())
        *parts, database = others
        components = [own, *map(self._or_starting, parts), database, *store]
        return gateway_pb2.Health(
            status=worst(item.status for item in components), components=components, version=self._version
        )

    def _or_starting(self, component: gateway_pb2.ComponentHealth) -> gateway_pb2.ComponentHealth:
        """Return the component, with STARTING instead of DOWN if it has not answered since the gateway started a moment ago."""
        if component.status == gateway_pb2.HEALTH_STATE_OK:
            self._answered.add(component.name)
        young = self._clock() - self._began < START_SECONDS
        if component.status == gateway_pb2.HEALTH_STATE_DOWN and young and component.name not in self._answered:
            return _component(component.name, gateway_pb2.HEALTH_STATE_STARTING, "has not answered since the start")
        return component

    async def _ask(self, name: str) -> gateway_pb2.ComponentHealth:
        try:
            answer = await self._members.health[name].Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        except grpc.aio.AioRpcError:
            return _component(name, gateway_pb2.HEALTH_STATE_DOWN, "does not answer")
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            return _component(name, gateway_pb2.HEALTH_STATE_DEGRADED, "is starting or stopping")
        if not await self._certificate_is_well(name):
            return _component(name, gateway_pb2.HEALTH_STATE_DEGRADED, _CERTIFICATE.format(name=name))
        return _component(name, gateway_pb2.HEALTH_STATE_OK, "")

    async def _certificate_is_well(self, name: str) -> bool:
        if not self._members.over_tcp:
            return True
        try:
            return await self._part_is_well(name, HEALTH_PART) is not False
        except _NotSaidYetError:
            return True

    async def _ask_store(self) -> list[gateway_pb2.ComponentHealth]:
        """Return the store's health as the download service reports it; nothing if that service is DOWN, which is reported separately."""
        try:
            well, accepted = await asyncio.gather(
                self._part_is_well("download", "store"), self._part_is_well("download", "store.credentials")
            )
        except _NotSaidYetError:
            # The download service listens before its first check of the store.
            return [_component("store", gateway_pb2.HEALTH_STATE_DEGRADED, "is being checked for the first time")]
        if well is None:
            return []
        if well:
            return [_component("store", gateway_pb2.HEALTH_STATE_OK, "")]
        refused = (
            "the object store refuses MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or its folder this user, or a folder in it is on"
            " another file system; `llamesh logs download` has the cause"
        )
        away = (
            "the object store cannot be used: it is stopped or cut off, MINIO_ENDPOINT is wrong, or its folder is gone;"
            " models can neither be downloaded nor read"
        )
        message = refused if accepted is False else away
        # DEGRADED only: models that were copied to this machine are still served.
        return [_component("store", gateway_pb2.HEALTH_STATE_DEGRADED, message)]

    async def _part_is_well(self, member: str, part: str) -> bool | None:
        """Return whether a dependency of a member is healthy; None if the member does not answer.

        Raises _NotSaidYetError if the member has not yet reported the dependency.
        """
        request = health_pb2.HealthCheckRequest(service=part)
        try:
            answer = await self._members.health[member].Check(request, timeout=PATIENCE)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise _NotSaidYetError from error
            return None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def _ask_database(self) -> gateway_pb2.ComponentHealth:
        """Combine what the members report about their databases. A member that is DOWN is reported separately."""
        seen = await asyncio.gather(*(self._database_of(name) for name in self._members.health))
        own = [] if self._database_answers() else ["gateway"]
        missing = own + [name for name, well in zip(self._members.health, seen, strict=True) if well is False]
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
            mesh = await self._members.controller.GetMeshStatus(controller_pb2.GetMeshStatusRequest(), timeout=PATIENCE)
        except grpc.aio.AioRpcError:
            return _component("envoy", gateway_pb2.HEALTH_STATE_UNSPECIFIED, "unknown until the controller answers")
        if not mesh.connected_envoys:
            return _component("envoy", gateway_pb2.HEALTH_STATE_DOWN, "no Envoy is connected to the controller")
        return _component("envoy", gateway_pb2.HEALTH_STATE_OK, "")


def worst(states: Iterable[State]) -> State:
    """Return the worst state; an unknown one counts as DEGRADED."""
    return max((state or gateway_pb2.HEALTH_STATE_DEGRADED for state in states), key=_FROM_BEST_TO_WORST.index)


def _component(name: str, status: State, message: str) -> gateway_pb2.ComponentHealth:
    return gateway_pb2.ComponentHealth(name=name, status=status, message=message)


def _version() -> str:
    try:
        return version("llamesh")
    except PackageNotFoundError:
        return "unknown"
