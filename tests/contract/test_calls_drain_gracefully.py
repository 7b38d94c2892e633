"""A process that stops: health says so first, calls under way are finished, streams end, nothing new begins."""

from __future__ import annotations

import asyncio
import socket
import stat

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamesh.locations import make_private
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc, server_pb2
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "llamesh.v1.GatewayService"
LARGE = "large"
"""Asks the fake for responses that a connection does not take at once: gRPC is in the middle of sending one."""


class SlowGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """A fake of the gateway whose GetServer answers when it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.let_go = asyncio.Event()

    async def GetServer(self, request, context):
        self.begun.set()
        await self.let_go.wait()
        return server_pb2.Server(server_uuid=request.server_uuid)

    async def Watch(self, request, context):
        while request.resume_token == LARGE:
            self.begun.set()
            yield gateway_pb2.WatchResponse(resume_token="x" * (3 << 20))
        yield gateway_pb2.WatchResponse(synced=True)
        await asyncio.Event().wait()


@pytest.fixture
async def slow(one_settings, start_member, connect):
    servicer = SlowGateway()

    def register(member):
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, member.server)
        member.announce(SERVICE)

    member = await start_member(one_settings.model_copy(update={"drain_seconds": 10 * PATIENCE}), "gateway", register)
    return servicer, member, connect(one_settings, "gateway")


async def test_a_call_under_way_is_finished_and_health_has_turned(slow, as_caller) -> None:
    servicer, member, channel = slow
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", SERVICE):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
    seen: list[int] = []

    async def follow_health() -> None:
        async for answer in health.Watch(health_pb2.HealthCheckRequest(service=SERVICE)):
            seen.append(answer.status)  # noqa: PERF401 - read while it grows

    follower = asyncio.ensure_future(follow_health())
    while not seen:
        await asyncio.sleep(0.005)
    asked = gateway_pb2_grpc.GatewayServiceStub(channel).GetServer(
        gateway_pb2.GetServerRequest(server_uuid="x"), metadata=as_caller("ada", "manage")
    )
    asked = asyncio.ensure_future(asked)
    await asyncio.wait_for(servicer.begun.wait(), PATIENCE)
    member.stop()
    async with asyncio.timeout(PATIENCE):
        while seen[-1] != NOT_SERVING:
            await asyncio.sleep(0.005)
    assert seen == [SERVING, NOT_SERVING]
    assert not asked.done()
    servicer.let_go.set()
    assert (await asyncio.wait_for(asked, PATIENCE)).server_uuid == "x"
    follower.cancel()
    await asyncio.gather(follower, return_exceptions=True)


async def test_streams_end_at_once_with_a_reason_to_come_back(slow, as_caller) -> None:
    _, member, channel = slow
    stream = aiter(
        gateway_pb2_grpc.GatewayServiceStub(channel).Watch(
            gateway_pb2.WatchRequest(), metadata=as_caller("ada", "manage")
        )
    )
    assert (await anext(stream)).synced
    member.stop()
    with refused("COMPONENT_UNAVAILABLE") as refusal:
        await asyncio.wait_for(anext(stream), PATIENCE)
    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.retry_after == 1
    await asyncio.wait_for(member.stopped.wait(), PATIENCE)


async def test_a_stream_that_is_just_being_sent_ends_with_the_same_reason(slow, as_caller) -> None:
    servicer, member, channel = slow
    stream = gateway_pb2_grpc.GatewayServiceStub(channel).Watch(
        gateway_pb2.WatchRequest(resume_token=LARGE), metadata=as_caller("ada", "manage")
    )
    await asyncio.wait_for(servicer.begun.wait(), PATIENCE)
    for _ in range(20):
        await asyncio.sleep(0)  # gRPC takes the response, and waits for a reader
    member.stop()
    with refused("COMPONENT_UNAVAILABLE"):
        async with asyncio.timeout(PATIENCE):
            async for _ in stream:
                pass


async def test_the_socket_is_free_for_the_next_process(slow, one_settings, start_member, stop_member, connect) -> None:
    _, member, channel = slow
    await stop_member(member)
    await start_member(one_settings, "gateway", lambda other: other.announce(SERVICE))
    health = health_pb2_grpc.HealthStub(channel)
    answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), wait_for_ready=True, timeout=PATIENCE)
    assert answer.status == SERVING


async def test_a_socket_that_a_killed_process_left_behind_is_replaced(one_settings, start_member, connect) -> None:
    path = make_private(one_settings.run_dir) / "gateway.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    assert path.exists()
    await start_member(one_settings, "gateway", lambda member: member.announce(SERVICE))
    health = health_pb2_grpc.HealthStub(connect(one_settings, "gateway"))
    assert (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=PATIENCE)).status == SERVING
    assert stat.S_IMODE(one_settings.run_dir.stat().st_mode) == 0o700
