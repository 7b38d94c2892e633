"""The management listener for gRPC and gRPC-Web clients, and while a service restarts."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2

from controller.xds.restarts import MAX_RESTART_RETRIES
from llamesh.kit.errors import DETAILS_KEY
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.mesh.front_door import PATIENCE, front_door, token
from tests.mesh.management_door import (
    BEARER,
    SERVICE,
    Gateway,
    Mesh,
    management,
    plain,
    serve,
    status_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def channel(managed: Mesh) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{managed[0].port}") as channel:
        yield channel


async def call(channel: grpc.aio.Channel, method: str, **metadata: str) -> Any:
    return await channel.unary_unary(method)(b"", metadata=tuple(metadata.items()), timeout=PATIENCE)


async def test_grpc_passes_as_it_is(channel: grpc.aio.Channel, managed: Mesh) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)
    assert (await stub.GetHealth(gateway_pb2.GetHealthRequest())).version == "1"
    assert len([each async for each in stub.Watch(gateway_pb2.WatchRequest(), metadata=tuple(BEARER.items()))]) == 2


@pytest.mark.parametrize(
    ("method", "metadata", "code"),
    [
        (f"{SERVICE}/GetServer", {}, grpc.StatusCode.UNAUTHENTICATED),
        (f"{SERVICE}/GetServer", {"authorization": f"Bearer {token(aud='other')}"}, grpc.StatusCode.UNAUTHENTICATED),
        (f"{SERVICE}/GetServer", BEARER, grpc.StatusCode.NOT_FOUND),
        (f"{SERVICE}/Nope", BEARER, grpc.StatusCode.UNIMPLEMENTED),
        ("/llamesh.v1.SigningKeyService/GetKeys", BEARER, grpc.StatusCode.UNIMPLEMENTED),
        ("/llamesh.v1.ControllerService/ListDeclaredServers", BEARER, grpc.StatusCode.UNIMPLEMENTED),
        ("/nope.Nope/Nope", BEARER, grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_grpc_clients_get_grpc_errors(
    channel: grpc.aio.Channel, method: str, metadata: dict[str, str], code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(channel, method, **metadata)
    assert error.value.code() == code
    if code is grpc.StatusCode.NOT_FOUND:
        return  # the service's own
    details = dict(error.value.trailing_metadata() or ())[DETAILS_KEY]
    status = status_pb2.Status.FromString(details)
    assert (status.code, status.message) == (code.value[0], error.value.details())
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "llamesh"
    assert info.reason == ("UNAUTHENTICATED" if code is grpc.StatusCode.UNAUTHENTICATED else "NOT_IMPLEMENTED")
    plain(status.message)


async def test_grpc_web(managed: Mesh) -> None:
    door, _ = managed
    headers = {"content-type": "application/grpc-web+proto"}
    answer = await door.send("POST", f"{SERVICE}/GetHealth", b"\0" + struct.pack(">I", 0), headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    length = struct.unpack(">I", answer.body[1:5])[0]
    assert gateway_pb2.Health.FromString(answer.body[5 : 5 + length]).version == "1"
    assert b"grpc-status:0" in answer.body[5 + length :].replace(b" ", b"")
    for path, code in ((f"{SERVICE}/GetServer", "16"), (f"{SERVICE}/Nope", "12")):
        authorised = BEARER if code == "12" else {}
        refused = await door.send("POST", path, b"\0" + struct.pack(">I", 0), headers | authorised)
        assert refused.headers["grpc-status"] == code
        assert refused.headers["grpc-message"]
        padded = refused.headers[DETAILS_KEY] + "=="
        assert status_pb2.Status.FromString(base64.b64decode(padded)).code == int(code)


async def test_a_service_that_restarts_is_waited_for() -> None:
    async with front_door(running=False) as door:
        gateway = Gateway()
        server = await serve(door, gateway)
        await door.start(None, (replace(management(door), restart_retries=MAX_RESTART_RETRIES),))
        assert (await door.send("GET", "/health")).status == 200
        await server.stop(None)
        asking = [
            asyncio.create_task(door.send("POST", "/auth/token", {"username": "a", "password": "b"})) for _ in range(5)
        ]
        await asyncio.sleep(0.5)
        server = await serve(door, gateway)
        assert [(await each).status for each in asking] == [200] * 5
        assert len(gateway.requests) == 6
        await server.stop(None)


async def test_a_service_that_stays_away_is_503() -> None:
    async with front_door(running=False) as door:
        await door.start(None, (management(door),))
        away = await door.send("GET", "/health")
        assert (away.status, away.headers["retry-after"]) == (503, "1")
        assert status_of(away, 14)["details"][0]["reason"] == "COMPONENT_UNAVAILABLE"


async def test_a_call_that_only_reads_is_asked_again_if_it_was_lost_with_its_service() -> None:
    async with front_door(running=False) as door:
        await door.start(None, (replace(management(door), restart_retries=MAX_RESTART_RETRIES),))
        lost: list[bytes] = []

        async def lose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """A service that dies with each request that it has."""
            while b"GatewayService" not in b"".join(lost[-1:]) and (read := await reader.read(65536)):
                lost.append(read)
                if len(read) > 100:
                    break
            writer.transport.abort()

        async def asked(method: str, path: str, body: dict[str, Any] | None) -> int:
            """Status of a call whose first service dies with it and whose second is well."""
            lost.clear()
            dying = await asyncio.start_unix_server(lose, door.socket("gateway"))
            call = asyncio.create_task(door.send(method, path, body))
            async with asyncio.timeout(PATIENCE):
                while not lost and not call.done():
                    await asyncio.sleep(0.01)
            dying.close()
            Path(door.socket("gateway")).unlink(missing_ok=True)
            server = await serve(door, Gateway())
            try:
                return (await call).status
            finally:
                await server.stop(None)
                Path(door.socket("gateway")).unlink(missing_ok=True)

        assert await asked("GET", "/health", None) == 200
        assert await asked("POST", "/auth/token", {"username": "a", "password": "b"}) == 503
