"""Liveness probes: is a process still answering, and when has it been silent for too long?

Probes are counted, not timed: after a suspended machine or a stopped supervisor wakes up, one probe is overdue and not many. A process that
has not answered yet is starting (it may migrate a large database): it is given longer, and probed often, so that one that serves for a
moment and then hangs is known to have served.
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
STARTING_SECONDS = 0.5
"""A process that has not answered yet is probed so often."""
START_PATIENCES = 15
"""A process that has not answered yet is ended after so many times the patience."""

Probe = Callable[[float], Awaitable[bool]]
"""Asks a process for an answer within so many seconds. OSError: it could not be asked, which says nothing about the process."""


@dataclass(slots=True)
class Liveness:
    """The probes of one process since its start."""

    patience: float
    """Seconds that SILENT_PROBES unanswered probes take."""
    silent: int = 0
    """Probes without an answer in a row."""
    answered: bool = False
    """Whether it has answered since its start."""
    starting: float = 0.0
    """Seconds of unanswered probes since its start; one probe counts at most `probe_seconds`, however late it was."""

    @property
    def probe_seconds(self) -> float:
        """How long an answer is waited for."""
        return self.patience / SILENT_PROBES

    @property
    def every(self) -> float:
        """Seconds from one probe to the next."""
        return self.probe_seconds if self.answered else min(STARTING_SECONDS, self.probe_seconds)

    @property
    def start_patience(self) -> float:
        """Seconds that a process may take to its first answer."""
        return START_PATIENCES * self.patience

    def count(self, *, answered: bool, took: float = 0.0) -> bool:
        """Count one probe, which took so many seconds. Returns whether the process has been silent for too long."""
        self.starting += min(max(took, self.every), self.probe_seconds)
        self.silent = 0 if answered else self.silent + 1
        self.answered = self.answered or answered
        return self.silent >= SILENT_PROBES if self.answered else self.starting >= self.start_patience

    def words(self) -> str:
        """What the process did not do, once it has been silent for too long."""
        if self.answered:
            return f"left {self.silent} liveness probes in a row unanswered"
        return f"did not answer any liveness probe for {self.start_patience:g} s after its start"

    def begin_again(self) -> None:
        """Forget the silence: the process was ended for it."""
        self.silent, self.starting = 0, 0.0


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
