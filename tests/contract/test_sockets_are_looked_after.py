"""A service whose socket vanishes finishes what runs and ends, so that it is started again; one whose path leads elsewhere goes on."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from llamesh.kit.database import open_database
from llamesh.kit.serving import Member, StopRequested
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc, server_pb2
from tests.contract.patience import PATIENCE


class SlowGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """A fake of the gateway whose GetServer answers when it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def GetServer(self, request, context):
        self.begun.set()
        await self.let_go.wait()
        return server_pb2.Server(server_uuid=request.server_uuid)


@pytest.fixture
async def serving(one_settings, monkeypatch):
    """A member that is looked after, and the event that says that it gave up. Its calls may take as long as the test needs."""
    monkeypatch.setattr("llamesh.kit.serving._LOST_GRACE", PATIENCE)
    gave_up = asyncio.Event()
    member = Member("gateway", one_settings.model_copy(update={"drain_seconds": PATIENCE}), gave_up.set)
    servicer = SlowGateway()
    gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, member.server)
    task = asyncio.create_task(member.serve())
    await member.started.wait()
    yield member, servicer, gave_up
    member.stop()
    await task


@pytest.mark.parametrize("damage", ["deleted", "a file", "its directory deleted"])
async def test_a_socket_that_vanishes_ends_the_service_once_its_calls_are_finished(
    serving, one_settings, connect, as_caller, damage
) -> None:
    _, servicer, gave_up = serving
    path = one_settings.socket("gateway")
    channel = connect(one_settings, "gateway")
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    request = gateway_pb2.GetServerRequest(server_uuid="0f0c6a0e-2b0d-4b4e-9a52-7f4f7c1f8f10")
    call = stub.GetServer(request, metadata=as_caller("ada", "manage"))
    await servicer.begun.wait()
    path.unlink()
    if damage == "a file":
        path.write_text("not a socket")
    elif damage == "its directory deleted":
        path.parent.rmdir()
    await refuses_new_calls(channel)
    assert not gave_up.is_set()
    servicer.let_go.set()
    assert (await call).server_uuid == request.server_uuid
    await asyncio.wait_for(gave_up.wait(), PATIENCE)


async def refuses_new_calls(channel: grpc.aio.Channel) -> None:
    """Wait until the server at the end of a channel lets no new call in."""
    health = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(grpc.aio.AioRpcError):
            while True:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
                await asyncio.sleep(0.05)


async def test_a_path_that_leads_to_another_process_is_left_alone(serving, one_settings, tmp_path) -> None:
    member, _, gave_up = serving
    path = one_settings.socket("gateway")
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(gave_up.wait(), 2.5)
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)).status == 1
    assert not member.stopping.is_set()


async def test_a_member_that_stops_while_it_waits_for_its_database_does_not_give_up(one_settings) -> None:
    """gRPC removes the socket. What the process still has to do may take longer than the next look at the path."""
    settings = one_settings.model_copy(update={"database_url": SecretStr("postgresql://ada@127.0.0.1:1/x")})
    gave_up = asyncio.Event()
    member = Member("gateway", settings, gave_up.set)
    database = open_database(settings, "gateway")
    waiting = asyncio.create_task(member.prepare(database, "services.gateway"))
    async with grpc.aio.insecure_channel(f"unix:{settings.socket('gateway')}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE, wait_for_ready=True)
    member.stop()
    with pytest.raises(StopRequested):
        await waiting
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(gave_up.wait(), 2.5)
    await database.close()
