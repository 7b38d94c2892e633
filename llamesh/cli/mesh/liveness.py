"""Liveness probes: decide when a process has not answered for too long.

Probes are counted, not timed: when a suspended machine or a stopped supervisor resumes, only one probe is overdue. A process that does not
listen yet is starting (it may migrate a large database), so it gets more time. It is probed often, so that a process that listens briefly
and then hangs is known to have listened.
"""

from __future__ import annotations

import asyncio
import enum
import http.client
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from llamesh.cli.mesh import envoy, health, member_health
from llamesh.cli.mesh.settings import MeshSettings

SILENT_PROBES = 5
"""Unanswered probes in a row after which a process is killed."""
STARTING_SECONDS = 0.5
"""Seconds between probes of a process that does not listen yet."""
START_PATIENCES = 15
"""A process that does not listen yet is killed after this multiple of the patience."""


class Answer(enum.Enum):
    """Result of a probe."""

    GIVEN = enum.auto()
    NONE = enum.auto()
    """It accepts connections and does not answer."""
    NOBODY = enum.auto()
    """Nobody accepts connections."""


Probe = Callable[[float], Awaitable[Answer]]
"""Probes a process with a deadline in seconds. OSError: the probe could not be sent, which says nothing about the process."""


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
        """Deadline of a probe in seconds."""
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
        """Count one probe and its seconds. Return whether the process has not answered for too long."""
        self.starting += min(max(took, self.every), self.probe_seconds)
        if answer is Answer.GIVEN or (answer is Answer.NONE and not self.listens):
            # Probes from before it listened do not count.
            self.silent = 0
        self.listens = self.listens or answer is not Answer.NOBODY
        self.silent += answer is not Answer.GIVEN
        return self.silent >= SILENT_PROBES if self.listens else self.starting >= self.start_patience

    def words(self) -> str:
        """Describe why the process is killed."""
        if self.listens:
            return f"left {self.silent} liveness probes in a row unanswered"
        return f"did not answer any liveness probe for {self.start_patience:g} s after its start"

    def begin_again(self) -> None:
        """Reset the counts after the process was killed."""
        self.silent, self.starting = 0, 0.0


class MemberProbe:
    """Asks a member for its gRPC health on its Unix socket; its event loop answers."""

    def __init__(self, path: Path) -> None:
        self._socket = path

    async def __call__(self, seconds: float) -> Answer:
        """Whether the member answered, whatever its health is."""
        member_health.prepare_grpc()
        import grpc

        # A new connection each time: one that is kept would not notice that the socket's file is gone.
        async with grpc.aio.insecure_channel(f"unix:{self._socket}", options=member_health.PROBE_OPTIONS) as channel:
            # An empty HealthCheckRequest has no bytes, and the content of the answer does not matter.
            check = channel.unary_unary(member_health.CHECK, request_serializer=bytes, response_deserializer=bytes)
            try:
                await check(b"", timeout=seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return Answer.NONE if self._accepts() else Answer.NOBODY
        return Answer.GIVEN

    def _accepts(self) -> bool:
        """Whether its socket accepts connections. The kernel answers at once; the result of the call is not reliable on a busy machine."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                connection.connect(str(self._socket))
            except BlockingIOError:
                return True  # the backlog is full
            except OSError:
                return False
        return True


class EnvoyProbe:
    """Probes Envoy's main thread on the admin socket, or the front door if the socket's file is missing."""

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
