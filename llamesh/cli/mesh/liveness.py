"""Liveness probes: is a process still answering, and when has it been silent for too long?

Probes are counted, not timed: after a suspended machine or a stopped supervisor wakes up, one probe is overdue and not many. A process that
does not listen yet is starting (it may migrate a large database): it is given longer, and probed often, so that one that serves for a
moment and then hangs is known to have served.
"""

from __future__ import annotations

import asyncio
import enum
import http.client
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from llamesh.cli.mesh import envoy, health
from llamesh.cli.mesh.settings import MeshSettings

SILENT_PROBES = 5
"""A process that leaves so many probes in a row unanswered is ended."""
STARTING_SECONDS = 0.5
"""A process that does not listen yet is probed so often."""
START_PATIENCES = 15
"""A process that does not listen yet is ended after so many times the patience."""


class Answer(enum.Enum):
    """What a probe found."""

    GIVEN = enum.auto()
    NONE = enum.auto()
    """It accepts connections and does not answer."""
    NOBODY = enum.auto()
    """Nobody accepts connections."""


Probe = Callable[[float], Awaitable[Answer]]
"""Asks a process for an answer within so many seconds. OSError: it could not be asked, which says nothing about the process."""


@dataclass(slots=True)
class Liveness:
    """The probes of one process since its start."""

    patience: float
    """Seconds that SILENT_PROBES unanswered probes take."""
    silent: int = 0
    """Probes without an answer in a row."""
    listens: bool = False
    """Whether it has accepted a connection since its start, which ends the start."""
    starting: float = 0.0
    """Seconds of unanswered probes since its start; one probe counts at most `probe_seconds`, however late it was."""

    @property
    def probe_seconds(self) -> float:
        """How long an answer is waited for."""
        return self.patience / SILENT_PROBES

    @property
    def every(self) -> float:
        """Seconds from one probe to the next."""
        return self.probe_seconds if self.listens else min(STARTING_SECONDS, self.probe_seconds)

    @property
    def start_patience(self) -> float:
        """Seconds that a process may take until it listens."""
        return START_PATIENCES * self.patience

    def count(self, answer: Answer, took: float = 0.0) -> bool:
        """Count one probe, which took so many seconds. Returns whether the process has been silent for too long."""
        self.starting += min(max(took, self.every), self.probe_seconds)
        if answer is Answer.GIVEN or (answer is Answer.NONE and not self.listens):
            # What it left unanswered before it listened is no silence.
            self.silent = 0
        self.listens = self.listens or answer is not Answer.NOBODY
        self.silent += answer is not Answer.GIVEN
        return self.silent >= SILENT_PROBES if self.listens else self.starting >= self.start_patience

    def words(self) -> str:
        """What the process did not do, once it has been silent for too long."""
        if self.listens:
            return f"left {self.silent} liveness probes in a row unanswered"
        return f"did not answer any liveness probe for {self.start_patience:g} s after its start"

    def begin_again(self) -> None:
        """Forget the silence: the process was ended for it."""
        self.silent, self.starting = 0, 0.0


class MemberProbe:
    """Asks a member for its gRPC health on its Unix socket; its event loop answers."""

    def __init__(self, path: Path) -> None:
        self._socket = path

    async def __call__(self, seconds: float) -> Answer:
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
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return Answer.NONE if self._accepts() else Answer.NOBODY
        return Answer.GIVEN

    def _accepts(self) -> bool:
        """Whether its socket takes connections; the kernel answers, at once. How the call ended does not say it on a busy machine."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                connection.connect(str(self._socket))
            except BlockingIOError:
                return True  # and so many wait that there is no room for another
            except OSError:
                return False
        return True


class EnvoyProbe:
    """Asks Envoy's main thread on the admin socket; where that file is gone, its front door."""

    def __init__(self, settings: MeshSettings) -> None:
        self._settings = settings

    async def __call__(self, seconds: float) -> Answer:
        """Whether Envoy answered, ready or not."""
        return await asyncio.to_thread(self._ask, seconds)

    def _ask(self, seconds: float) -> Answer:
        try:
            envoy.ask_admin(self._settings, "GET", "/ready", seconds)
        except FileNotFoundError:
            return self._ask_front_door(seconds)
        except TimeoutError:
            return Answer.NONE
        except ConnectionError:
            return Answer.NOBODY
        return Answer.GIVEN

    def _ask_front_door(self, seconds: float) -> Answer:
        try:
            health.ask(self._settings.host, self._settings.gateway_port, seconds, tls=self._settings.tls)
        except TimeoutError:
            return Answer.NONE
        except (OSError, http.client.HTTPException):
            return Answer.NOBODY
        return Answer.GIVEN
