"""A process of the mesh from start to drain: one gRPC server with health, reflection, keepalive and a graceful end.

    run("gateway", main)        # in __main__: sets up settings, logs and the loop, calls `main(member)`

`main` builds its parts, registers servicers on `member.server`, and awaits `member.serve()`, which returns after the drain.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from pydantic import ValidationError

from llamesh.kit.calls import MeshInterceptor
from llamesh.kit.config import Settings, load_settings, make_private
from llamesh.kit.lifeline import watch_lifeline
from llamesh.kit.listening import SocketWatch
from llamesh.kit.logs import configure_logs, log
from llamesh.kit.reflection import add_reflection
from llamesh.kit.revocations import Revocations

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Longest message on the wire; contracts carry no bulk data."""

MAX_METADATA_BYTES = 128 * 1024
"""Most headers of a call: all that Envoy lets in (60 KiB), and the claims of a token a second time."""

OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)


LOST_CODE = 3
"""What a process ends with whose socket has vanished."""
_LOST_GRACE = 2.0
"""Seconds that calls under way get then; nobody can reach the service meanwhile."""


class StartRefused(Exception):  # noqa: N818 - it is no fault of the program
    """The process may not start as it is configured; the message says what to do. `run` prints it and exits 2."""


class Member:
    """One process of the mesh: its name, settings, gRPC server and health."""

    def __init__(self, name: str, settings: Settings, give_up: Callable[[], None] | None = None) -> None:
        """`give_up`: ends the process as a kill would, so that it is started again; called if the service's socket has vanished, for gRPC
        cannot listen anew. None: the socket is not looked after."""
        self.name = name
        self.settings = settings
        self._give_up = give_up
        self._calls = MeshInterceptor()
        self.server = grpc.aio.server(interceptors=[self._calls], options=list(OPTIONS))
        self.started = asyncio.Event()
        """Set once calls are answered."""
        self.stopping = asyncio.Event()
        """Set when the drain begins."""
        self.stopped = asyncio.Event()
        """Set when the drain is over."""
        self._health = HealthServicer()
        self._services: list[str] = []
        self._shown: list[str] = []
        self._revocations: Revocations | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)

    def announce(self, *services: str) -> None:
        """Name the services that health and reflection speak of, for instance "llamesh.v1.GatewayService"."""
        self._services.extend(services)

    def show(self, *services: str) -> None:
        """Name services of siblings that clients find at the same address, so that reflection speaks of them too."""
        self._shown.extend(services)

    def refuse_revoked(self, contract: grpc.aio.Channel) -> None:
        """Refuse, while serving, the tokens that the contract service at the end of this channel says are revoked."""
        self._revocations = Revocations(contract, self._take_revoked)

    async def serve(self, address: str | None = None) -> None:
        """Listen (on the service's Unix socket unless told otherwise) until asked to stop.

        Then drain: health says so, streams end, calls are finished.
        """
        if self.settings.reflection:
            add_reflection(self.server, [*self._services, *self._shown])
        bound = address or f"unix:{self._fresh_socket()}"
        self.server.add_insecure_port(bound)
        await self.server.start()
        await self._announce_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", address=bound, pid=os.getpid())
        self.started.set()
        if self._revocations:
            self._revocations.start()
        watch = SocketWatch(self.settings.socket(self.name), self._lost)
        if address is None and self._give_up is not None:
            watch.start()
        await self.stopping.wait()
        await watch.close()
        await self._announce_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._calls.streams.drain()
        await self.server.stop(self.settings.drain_seconds)
        if self._revocations:
            await self._revocations.close()
        self.stopped.set()
        log.info("stopped")

    def stop(self) -> None:
        """Begin the drain."""
        self.stopping.set()

    async def _lost(self) -> None:
        """Nobody new finds us: finish what runs, in short, and make room for a process that listens."""
        assert self._give_up is not None, "only then is the socket looked after"
        await self._announce_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._calls.streams.drain()
        await self.server.stop(min(self.settings.drain_seconds, _LOST_GRACE))
        log.error("ending, to be started again with a new socket")
        self._give_up()

    def _take_revoked(self, token_ids: Iterable[str]) -> None:
        self._calls.revoked = frozenset(token_ids)

    def _fresh_socket(self) -> str:
        make_private(self.settings.run_dir)
        path = self.settings.socket(self.name)
        path.unlink(missing_ok=True)
        return str(path)

    async def _announce_health(self, state: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for service in ("", *self._services):
            await self._health.set(service, state)


def run(name: str, main: Callable[[Member], Awaitable[None]]) -> None:
    """Run a process of the mesh; exit 2, naming the setting and the remedy, where it may not start."""
    try:
        settings = load_settings()
    except ValidationError as error:
        for item in error.errors():
            sys.stderr.write(f"{name}: setting {item['loc'][0]}: {item['msg']}\n")
        sys.exit(2)
    configure_logs(name, settings.log_level)

    async def supervised() -> None:
        member = Member(name, settings, lambda: os._exit(LOST_CODE))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, member.stop)
        # Whoever started us is gone: nothing is left to drain for.
        watch_lifeline(lambda: os._exit(1))
        await main(member)

    try:
        uvloop.run(supervised())
    except StartRefused as refusal:
        sys.stderr.write(f"{name}: {refusal}\n")
        sys.exit(2)
