"""Liveness probes: is a process still answering, and when has it been silent for too long?

Probes are counted, not timed: after a suspended machine or a stopped supervisor wakes up, one probe is overdue and not many. A process that
has not answered yet is starting (it may migrate a large database) and gets more probes.
"""

from __future__ import annotations

import asyncio
import http.client
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from llamesh.cli.mesh import envoy, health
from llamesh.cli.mesh.settings import MeshSettings

SILENT_PROBES = 5
"""A process that leaves so many probes in a row unanswered is ended."""
STARTING_PROBES = 15 * SILENT_PROBES
"""A process that has not answered yet may leave so many probes unanswered."""

Probe = Callable[[float], Awaitable[bool]]
"""Asks a process for an answer within so many seconds. OSError: it could not be asked, which says nothing about the process."""


@dataclass(slots=True)
class Liveness:
    """The probes of one process since its start."""

    silent: int = 0
    """Probes without an answer in a row."""
    answered: bool = False
    """Whether it has answered since its start."""

    def count(self, *, answered: bool) -> bool:
        """Count one probe. Returns whether the process has been silent for too long."""
        self.silent = 0 if answered else self.silent + 1
        self.answered = self.answered or answered
        return self.silent >= (SILENT_PROBES if self.answered else STARTING_PROBES)


class MemberProbe:
    """Asks a member for its gRPC health on its Unix socket; its event loop answers."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def __call__(self, seconds: float) -> bool:
        """Whether the member answered, whatever its health is."""
        # Processes are started beside this channel: gRPC's fork handlers would now and then abort such a child.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
        import grpc

        # A new connection each time: one that is kept would not notice that the socket's file is gone.
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=options) as channel:
            # An empty HealthCheckRequest has no bytes, and the content of the answer does not matter.
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check", request_serializer=bytes, response_deserializer=bytes
            )
            try:
                await check(b"", timeout=seconds)
            except grpc.aio.AioRpcError as error:
                return error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return True


class EnvoyProbe:
    """Asks Envoy's main thread on the admin socket; where that file is gone, its front door."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings

    async def __call__(self, seconds: float) -> bool:
        """Whether Envoy answered, ready or not."""
        return await asyncio.to_thread(self._ask, seconds)

    def _ask(self, seconds: float) -> bool:
        try:
            envoy.ask_admin(self._settings, "GET", "/ready", seconds)
        except FileNotFoundError:
            return self._front_door_answers(seconds)
        except (TimeoutError, ConnectionError):
            return False
        return True

    def _front_door_answers(self, seconds: float) -> bool:
        try:
            health.ask(self._settings.host, self._settings.gateway_port, seconds)
        except (OSError, http.client.HTTPException):
            return False
        return True
