"""A member: one process of the mesh, from its start to the end of its drain.

All members have the same shape. `__main__.py` passes the composition root to `run_member`, which reads the settings, sets up logs and the
event loop, takes the lock of this member in LLAMESH_HOME, opens the probe port, and awaits `run(member)`. `run`, in `service.py`, creates
the parts, registers servicers on `member.server`, awaits `member.prepare(...)` if the member has a database, starts background tasks, and
awaits `member.serve()`, which returns after the drain. Then `run` closes the parts in reverse order.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from llamesh import waiting
from llamesh.kit.calls import MeshInterceptor
from llamesh.kit.channels import SERVER_OPTIONS
from llamesh.kit.config import Settings
from llamesh.kit.config_loading import WrongSettingsError, load_settings, warnings
from llamesh.kit.database import Database
from llamesh.kit.database_watch import DatabaseWatch
from llamesh.kit.errors import StartRefused
from llamesh.kit.lifeline import watch_lifeline
from llamesh.kit.logs import configure_logs, log, report_failure
from llamesh.kit.member_port import MemberPort
from llamesh.kit.metrics import MemberMetrics
from llamesh.kit.ownership import HeldError, exclusive
from llamesh.kit.probe_port import ProbePort
from llamesh.kit.reflection import add_reflection
from llamesh.kit.rights import Rights, RightsReflector
from llamesh.kit.socket_watch import SocketWatch
from llamesh.locations import make_private
from llamesh.shutdown import ignore_sigterm, is_supervised, stop_signals
from llamesh.v1.metrics_pb2_grpc import add_MetricsServiceServicer_to_server
from llamesh.waiting import Wait

__all__ = ["DATABASE_SERVICE", "Member", "StartRefused", "StopRequested", "run_member"]

LOST_CODE = 3
"""Exit code of a process whose socket was deleted."""
_LOST_GRACE = 2.0
"""Drain in seconds of a process whose socket was deleted; short, because no new client can reach the service in the meantime."""

_END_SECONDS = 10.0
"""Seconds that a stopping process needs in addition to its drains."""

DATABASE_SERVICE = "database"
"""Name of the database in a member's gRPC health."""


class StopRequested(Exception):  # noqa: N818 - not an error
    """The member was asked to stop before it was ready."""


class Member:
    """One process of the mesh: its name, settings, gRPC server and health."""

    def __init__(self, name: str, settings: Settings, give_up: Callable[[], None] | None = None) -> None:
        """`give_up` ends the process at once, so that the supervisor starts it again. It is called if the socket was deleted, because gRPC
        cannot listen again. None: the socket is not watched. Raises StartRefused if its certificate cannot be used."""
        self.name = name
        self.settings = settings
        self._give_up = give_up
        self._watch = SocketWatch(settings.socket(name), self._lost)
        self.metrics = MemberMetrics()
        """The metrics of this member; its parts add theirs."""
        self._port = MemberPort(settings, name)
        self._calls = MeshInterceptor(self.metrics.observe_call, self._port.peers)
        options = [*SERVER_OPTIONS, *self._port.options]
        self.server = grpc.aio.server(interceptors=[self._calls], options=options)
        self.started = asyncio.Event()
        """Set when the member serves calls."""
        self.stopping = asyncio.Event()
        """Set when the drain begins."""
        self.stopped = asyncio.Event()
        """Set when the drain has ended."""
        self._health = HealthServicer()
        self._is_serving = False
        self.probes = ProbePort(settings.probes_at, lambda: self._is_serving and not self.stopping.is_set())
        """Answers the kubelet's probes while it is open."""
        self._services: list[str] = []
        self._shown: list[str] = []
        self._rights: RightsReflector | None = None
        self._on_stopping: list[Callable[[], None]] = []
        self._telling: set[asyncio.Task[None]] = set()
        self._drain_until: float | None = None
        self._listening = False
        self._database_watch: DatabaseWatch | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        add_MetricsServiceServicer_to_server(self.metrics, self.server)

    @property
    def database_answers(self) -> bool:
        """Whether the last probe of the database succeeded; true for a member without a database."""
        return self._database_watch is None or self._database_watch.answers

    def announce(self, *services: str) -> None:
        """Add services to health and reflection, for instance "llamesh.v1.GatewayService"."""
        self._services.extend(services)

    def show(self, *services: str) -> None:
        """Add services of other members to reflection, because clients find them at the same address."""
        self._shown.extend(services)

    def show_part(self, name: str, well: bool) -> None:
        """Report in health whether a dependency of this member, for instance "store", can be used."""
        state = health_pb2.HealthCheckResponse.SERVING if well else health_pb2.HealthCheckResponse.NOT_SERVING
        task = asyncio.get_running_loop().create_task(self._health.set(name, state))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def follow_rights(self, gateway: grpc.aio.Channel, contract: grpc.aio.Channel) -> Rights:
        """Check every caller against its present rights, mirrored from gateway and contract service through these channels.

        The member serves at once; calls that arrive before the first lists wait for them.
        """
        self._rights = RightsReflector(gateway, contract)
        self._calls.rights = self._rights.rights
        return self._rights.rights

    async def prepare(self, database: Database, package: str) -> None:
        """Apply the migrations of a package, and watch the database from then on.

        Waits for a database that does not answer. Meanwhile the member listens, health reports NOT_SERVING, and calls without a handler
        are refused as COMPONENT_UNAVAILABLE. Servicers that work without the database are therefore registered before.

        Raises:
            StartRefused: waiting cannot help: wrong password, no such database, tables of a newer program, a damaged file.
            StopRequested: asked to stop while waiting.
        """
        self._database_watch = watch = DatabaseWatch(database, self._say_database, self.wait_for)
        failure = await watch.prepare(package)
        if failure is not None:
            self._wait_for_component(DATABASE_SERVICE)
            await self._announce_health(health_pb2.HealthCheckResponse.NOT_SERVING)
            await self._say_database(False)
            await self._listen()
            if not await watch.wait(package, failure, self.stopping):
                # Stopping gRPC removes the socket, which the watch must not report.
                await self._watch.close()
                await self._port.close()
                await self.server.stop(None)
                self.stopped.set()
                raise StopRequested
            self.wait_for(None)
        await self._say_database(True)
        watch.start()

    def wait_for(self, wait: Wait | None) -> None:
        """Publish the wait of this member, for `llamesh up` and `llamesh doctor`; None if it no longer waits."""
        run_dir = self.settings.run_dir
        if wait is None:
            waiting.clear(run_dir, self.name)
            return
        try:
            waiting.say(make_private(run_dir), self.name, wait)
        except OSError as error:
            report_failure("publish what this member waits for", error)

    def _wait_for_component(self, component: str) -> None:
        """Refuse calls that need this component, and name it in the error; if empty, serve them."""
        self._calls.waits_for = component
        if self._rights:
            for service in ("gateway", "contract"):
                self._rights.rights.take_obstacle(service, component)

    async def serve(self, address: str | None = None) -> None:
        """Serve on the member's Unix socket, or on `address`, until `stop`; then drain and return.

        The drain: health reports NOT_SERVING, open streams end with UNAVAILABLE, other calls get `drain_seconds` to finish.
        """
        if self.settings.reflection:
            add_reflection(self.server, [*self._services, *self._shown])
        self._wait_for_component("")
        await self._listen(address)
        await self._announce_health(health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", pid=os.getpid())
        self.started.set()
        if self._rights:
            self._rights.start()
        await self.stopping.wait()
        await self._watch.close()
        await self._announce_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._calls.streams.drain()
        await self.server.stop(self.settings.drain_seconds)
        if self._rights:
            await self._rights.close()
        if self._database_watch:
            await self._database_watch.close()
        await self._port.close()
        self.stopped.set()
        log.info("stopped")

    def stop(self) -> None:
        """Start the drain. A second call only runs the callbacks of `on_stopping` again."""
        for act in self._on_stopping:
            act()
        if not self.stopping.is_set():
            self._drain_until = time.monotonic() + self.settings.drain_seconds
        self.stopping.set()

    def on_stopping(self, act: Callable[[], None]) -> None:
        """Register a callback for the start of the drain; it may be called more than once."""
        self._on_stopping.append(act)

    def drain_left(self) -> float:
        """Return the seconds left of the drain; before it starts, its whole length."""
        return self.settings.drain_seconds if self._drain_until is None else self._drain_until - time.monotonic()

    async def _lost(self) -> None:
        """End the process after a short drain: new clients cannot find its socket, and a new process will listen again."""
        assert self._give_up is not None, "else the socket is not watched"
        await self._announce_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._calls.streams.drain()
        await self.server.stop(min(self.settings.drain_seconds, _LOST_GRACE))
        log.error("ending, to be started again with a new socket")
        self._give_up()

    async def _listen(self, address: str | None = None) -> None:
        """Start listening. Idempotent."""
        if self._listening:
            return
        self._listening = True
        bound = address or f"unix:{self._fresh_socket()}"
        self.server.add_insecure_port(bound)
        self._port.add_to(self.server)
        await self.server.start()
        log.info("listening", address=bound, pid=os.getpid())
        self._port.start(self.show_part)
        if address is None and self._give_up is not None:
            self._watch.start()

    async def _say_database(self, answers: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if answers else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set(DATABASE_SERVICE, state)

    def _fresh_socket(self) -> str:
        make_private(self.settings.run_dir)
        path = self.settings.socket(self.name)
        path.unlink(missing_ok=True)
        return str(path)

    async def _announce_health(self, state: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        self._is_serving = state == health_pb2.HealthCheckResponse.SERVING
        for service in ("", *self._services):
            await self._health.set(service, state)


def run_member(name: str, run: Callable[[Member], Awaitable[None]]) -> None:
    """Run a member of the mesh until it has drained; if it may not start, exit with 2 after naming the setting and the remedy."""
    if is_supervised(os.environ):
        ignore_sigterm()
    try:
        settings = load_settings()
    except WrongSettingsError as error:
        sys.stderr.write("".join(f"{name}: {problem}\n" for problem in error.problems))
        sys.exit(2)
    configure_logs(name, settings.log_level)
    if not is_supervised(os.environ):
        # A supervisor reports these once for all members.
        for warning in warnings():
            log.warning(warning)

    async def supervised() -> None:
        member = Member(name, settings, lambda: os._exit(LOST_CODE))
        loop = asyncio.get_running_loop()
        for number in stop_signals(os.environ):
            loop.add_signal_handler(number, member.stop)
        # The supervisor has died, and Envoy with it: there is nothing to drain.
        watch_lifeline(lambda: os._exit(1))
        try:
            # Take the lock before touching anything in the home: database, engines, the socket of a live process.
            async with exclusive(settings.home, name, 2 * settings.drain_seconds + _END_SECONDS) as lock, member.probes:
                member.on_stopping(lock.say_ending)
                await run(member)
        except HeldError as error:
            raise StartRefused(
                f"{error} ({settings.home}): end it with `llamesh down` or `kill {error.holder or 'PID'}`,"
                " or set LLAMESH_HOME to another directory"
            ) from error

    try:
        uvloop.run(supervised())
    except StopRequested:
        return
    except StartRefused as refusal:
        sys.stderr.write(f"{name}: {refusal}\n")
        sys.exit(2)
