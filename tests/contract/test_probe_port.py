"""The probe port of a member tells the kubelet whether the member is live and ready, without TLS, and nothing else to anybody."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, suppress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.errors import StartRefused
from llamesh.kit.probe_port import LIVE, MAX_CONNECTIONS, MAX_MESSAGE_BYTES, READY
from llamesh.kit.serving import Member
from tests.contract.conftest import StartMain
from tests.contract.patience import PATIENCE, until
from tests.contract.secured import Secured
from tests.own_postgres import own_postgres
from tests.ports import free_ports

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SLOW = "/tests.Slow/Wait"

Probe = Callable[..., Awaitable[object]]
StartProbed = Callable[..., Awaitable[Member]]


@pytest.fixture
def probed(one_settings: Settings) -> Settings:
    return one_settings.model_copy(update={"probe_port": free_ports(1)[0]})


@pytest.fixture
def start_probed(start_main: StartMain) -> StartProbed:
    """`await start_probed(settings, register)`: a member as `run_member` runs it."""

    async def start(settings: Settings, register: Callable[[Member], None] = lambda _: None) -> Member:
        async def main(member: Member) -> None:
            async with member.probes:
                register(member)
                await member.serve()

        return await start_main(settings, "gateway", main)

    return start


def connected(settings: Settings) -> grpc.aio.Channel:
    """A new plaintext connection to the probe port, as the kubelet makes for each probe."""
    # Without transparent retries: they take gigabytes in a second if a server ends just when a new connection reaches it.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{settings.probe_port}", options=options)


@pytest.fixture
def probe(probed: Settings) -> Probe:
    """`await probe(LIVE)`: the health of a service, or the code of the refusal."""

    async def ask(service: str = READY, seconds: float = PATIENCE) -> object:
        request = health_pb2.HealthCheckRequest(service=service)
        async with connected(probed) as connection:
            try:
                return (await health_pb2_grpc.HealthStub(connection).Check(request, timeout=seconds)).status
            except grpc.aio.AioRpcError as error:
                return error.code()

    return ask


@pytest.fixture
async def connection(probed: Settings) -> AsyncIterator[grpc.aio.Channel]:
    async with connected(probed) as opened:
        yield opened


async def becomes(probe: Probe, service: str, state: object) -> None:
    """Wait until a probe has an answer."""
    async with asyncio.timeout(PATIENCE):
        while await probe(service) != state:
            await asyncio.sleep(0.02)


async def test_a_member_that_serves_is_live_and_ready(
    probed: Settings, start_probed: StartProbed, probe: Probe
) -> None:
    await start_probed(probed, lambda member: member.announce("llamesh.v1.GatewayService"))
    assert await probe(LIVE) == SERVING
    assert await probe(READY) == SERVING


async def test_no_other_service_is_told(probed: Settings, start_probed: StartProbed, probe: Probe) -> None:
    member = await start_probed(probed, lambda member: member.announce("llamesh.v1.GatewayService"))
    member.show_part("store", True)
    for name in ("llamesh.v1.GatewayService", "database", "store", "certificates", "LIVE", "live "):
        assert await probe(name) is grpc.StatusCode.NOT_FOUND, name


async def test_a_member_that_waits_for_its_database_is_live_and_not_ready(
    probed: Settings, start_main: StartMain, probe: Probe
) -> None:
    with own_postgres() as server:
        settings = probed.model_copy(update={"database_url": SecretStr(server.url())})
        server.stop()

        async def main(member: Member) -> None:
            database = open_database(settings, "gateway")
            try:
                async with member.probes:
                    await member.prepare(database, "services.gateway")
                    await member.serve()
            finally:
                await database.close()

        starting = asyncio.create_task(start_main(settings, "gateway", main))
        await becomes(probe, LIVE, SERVING)
        assert await probe(READY) == NOT_SERVING
        # Its own socket answers now, so it has seen that the database does not.
        await until(settings.socket("gateway").exists)
        assert (await probe(LIVE), await probe(READY)) == (SERVING, NOT_SERVING)
        await asyncio.to_thread(server.start)
        await becomes(probe, READY, SERVING)
        (await starting).stop()
        await becomes(probe, LIVE, grpc.StatusCode.UNAVAILABLE)


async def test_a_member_that_drains_is_live_and_not_ready(
    probed: Settings, start_probed: StartProbed, probe: Probe
) -> None:
    entered, released = asyncio.Event(), asyncio.Event()

    async def wait(_request: bytes, _context: object) -> bytes:
        entered.set()
        await released.wait()
        return b"done"

    def register(member: Member) -> None:
        handler = grpc.unary_unary_rpc_method_handler(wait)
        member.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Slow", {"Wait": handler}),))

    settings = probed.model_copy(update={"drain_seconds": PATIENCE})
    member = await start_probed(settings, register)
    async with grpc.aio.insecure_channel(f"unix:{settings.socket('gateway')}") as own:
        call = own.unary_unary(SLOW)(b"", timeout=PATIENCE)
        await asyncio.wait_for(entered.wait(), PATIENCE)
        member.stop()
        assert await probe(READY) == NOT_SERVING, "from the first moment of the drain"
        await becomes(probe, LIVE, SERVING)
        assert not call.done()
        released.set()
        assert await call == b"done"
    await asyncio.wait_for(member.stopped.wait(), PATIENCE)
    await becomes(probe, LIVE, grpc.StatusCode.UNAVAILABLE)


HANGS = """
import asyncio, sys, time
from llamesh.kit.serving import run_member

async def hang():
    await asyncio.to_thread(sys.stdin.readline)
    print("hangs", flush=True)
    time.sleep(600)

async def run(member):
    hanging = asyncio.create_task(hang())
    await member.serve()

run_member("gateway", run)
"""


async def test_a_member_whose_event_loop_hangs_does_not_answer(probed: Settings, probe: Probe) -> None:
    environment = {**os.environ, "LLAMESH_HOME": str(probed.home), "LLAMESH_PROBE_PORT": str(probed.probe_port)}
    with subprocess.Popen(
        [sys.executable, "-c", HANGS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            await becomes(probe, READY, SERVING)
            process.stdin.write("\n")
            process.stdin.flush()
            while (line := await asyncio.to_thread(process.stdout.readline)) != "hangs\n":
                assert line, "it has ended"
            assert await probe(LIVE, 3) is grpc.StatusCode.DEADLINE_EXCEEDED
        finally:
            process.kill()


@pytest.mark.parametrize(
    "method",
    [
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/llamesh-mesh.grpc.health.v1.Health/Check",
        "/llamesh.v1.MetricsService/CollectMetrics",
        "/llamesh.v1.GatewayService/ListServers",
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
        "/",
    ],
)
async def test_nothing_but_a_check_is_answered(
    probed: Settings, start_probed: StartProbed, connection: grpc.aio.Channel, method: str
) -> None:
    await start_probed(probed)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in connection.unary_stream(method)(b"", timeout=PATIENCE):
            break
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_requests_are_bounded_and_bytes_that_are_none_are_refused(
    probed: Settings, start_probed: StartProbed, connection: grpc.aio.Channel, probe: Probe
) -> None:
    await start_probed(probed)
    assert await probe("x" * MAX_MESSAGE_BYTES) is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await connection.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff", timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert await probe(READY) == SERVING


async def test_connections_are_bounded_and_silent_ones_make_room(
    probed: Settings, start_probed: StartProbed, probe: Probe
) -> None:
    await start_probed(probed)

    def greeted(more: int) -> int:
        """Number of new connections that the server speaks to."""
        found = 0
        for _ in range(more):
            opened = held.enter_context(socket.create_connection(("127.0.0.1", probed.probe_port), PATIENCE))
            with suppress(ConnectionError):
                found += bool(opened.recv(9))
        return found

    with ExitStack() as held:
        assert await asyncio.to_thread(greeted, MAX_CONNECTIONS + 8) <= MAX_CONNECTIONS
        await becomes(probe, READY, SERVING)


async def test_a_port_that_another_member_has_is_refused_in_words(probed: Settings, start_probed: StartProbed) -> None:
    await start_probed(probed)
    with pytest.raises(StartRefused, match=r"LLAMESH_PROBE_PORT is for one member in a pod of its own"):
        async with Member("contract", probed).probes:
            pass


def test_a_process_that_cannot_listen_for_probes_ends_with_2_and_words(probed: Settings) -> None:
    with socket.create_server(("0.0.0.0", probed.probe_port)):
        ended = subprocess.run(
            [sys.executable, "-c", HANGS],
            env={**os.environ, "LLAMESH_HOME": str(probed.home), "LLAMESH_PROBE_PORT": str(probed.probe_port)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert ended.returncode == 2, ended.stderr
    assert f"gateway: cannot listen for probes at [::]:{probed.probe_port}" in ended.stderr.splitlines()[-1]


async def test_members_on_tcp_have_no_other_port_without_tls(
    probed: Settings, start_probed: StartProbed, probe: Probe, tmp_path
) -> None:
    settings = Secured(probed, tmp_path / "certificates").settings
    await start_probed(settings)
    assert await probe(READY) == SERVING
    async with grpc.aio.insecure_channel(settings.member_addresses["gateway"]) as plain:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_address_follows_the_settings_of_members() -> None:
    assert Settings().probes_at == ""
    assert Settings(probe_port=9300).probes_at == "[::]:9300"
    assert Settings(probe_port=9300, member_bind="10.0.0.7").probes_at == "10.0.0.7:9300"
    assert Settings(probe_port=9300, member_bind="fd00::7").probes_at == "[fd00::7]:9300"
