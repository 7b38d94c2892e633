"""A stream that is open ends with the rights of its reader, whether or not there is anything to send."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from llamesh.v1 import gateway_pb2, server_pb2
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import read_refusal


@pytest.mark.parametrize("change", [{"role": gateway_pb2.ROLE_INFERENCE}, {"disabled": True}])
@pytest.mark.parametrize("stream", ["Watch", "ReadServerLog"])
async def test_an_open_stream_ends_with_the_change(mesh, as_caller, stream, change) -> None:
    root = as_caller("admin", "admin")
    mesh.controller.put(server_pb2.Server(server_uuid="srv-1"))
    login = gateway_pb2.CreateTokenRequest(username="ada", password="correct horse")
    own = [("x-llamesh-claims", (await mesh.gateway.CreateToken(login)).access_token.split(".")[1])]
    request = (
        gateway_pb2.WatchRequest()
        if stream == "Watch"
        else gateway_pb2.ReadServerLogRequest(server_uuid="srv-1", follow=True)
    )
    call = getattr(mesh.gateway, stream)(request, metadata=own)
    await call.read()
    # Changes that leave the reader its rights leave it the stream.
    await mesh.gateway.UpdateUser(gateway_pb2.UpdateUserRequest(username="bob", disabled=True), metadata=root)
    await mesh.gateway.UpdateUser(gateway_pb2.UpdateUserRequest(username="ada", contract_id="ctr_1"), metadata=root)
    await asyncio.sleep(0.1)
    assert not call.done()
    await mesh.gateway.UpdateUser(gateway_pb2.UpdateUserRequest(username="ada", **change), metadata=root)
    # Without a change of rights the stream would be looked at again after MAX_WAIT.
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async with asyncio.timeout(PATIENCE):
            while await call.read() is not grpc.aio.EOF:
                pass
    reason = "USER_DISABLED" if "disabled" in change else "SCOPE_MISSING"
    assert read_refusal(ended.value).reason == reason
    async with asyncio.timeout(PATIENCE):
        while mesh.controller.log_readers:
            await asyncio.sleep(0.01)


async def opened(make: Callable[[float], Any]) -> tuple[float, Any]:
    """Open a stream with a token that ends soon, but later than the stream begins; the end, and the stream after its first message."""
    for lifetime in (1.5, 15.0):
        end = time.time() + lifetime
        call = make(end)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call.read()
            return end, call
    raise AssertionError("no stream begins in time")


@pytest.mark.parametrize("stream", ["Watch", "ReadServerLog"])
async def test_an_open_stream_ends_with_its_token(mesh, as_caller, monkeypatch, stream) -> None:
    """Envoy looks at the end of a token only when a call begins."""
    monkeypatch.setattr("llamesh.kit.rights.CLOCK_SKEW_SECONDS", 0.0)
    mesh.controller.put(server_pb2.Server(server_uuid="srv-1"))
    request = (
        gateway_pb2.WatchRequest()
        if stream == "Watch"
        else gateway_pb2.ReadServerLogRequest(server_uuid="srv-1", follow=True)
    )
    end, call = await opened(
        lambda end: getattr(mesh.gateway, stream)(request, metadata=as_caller("admin", "admin", exp=end))
    )
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async with asyncio.timeout(PATIENCE):
            while await call.read() is not grpc.aio.EOF:
                pass
    assert time.time() >= end
    refusal = read_refusal(ended.value)
    assert refusal.reason == "UNAUTHENTICATED"
    assert "expired" in ended.value.details()
