"""What the call layer refuses before a handler runs: requests that break rules, callers without claims or scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from llamesh.kit.config import Settings
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc


def details(error: grpc.aio.AioRpcError) -> dict[str, object]:
    """The rich status of an error: its code and each detail by type."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata() or ())["grpc-status-details-bin"])
    found: dict[str, object] = {"code": status.code}
    for item in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            message = kind()
            if item.Unpack(message):
                found[kind.__name__] = message
    return found


class EchoGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """A fake of the gateway: answers with what it was asked."""

    async def GetServer(self, request, context):
        from llamesh.v1 import server_pb2

        return server_pb2.Server(server_uuid=request.server_uuid)

    async def ListUsers(self, request, context):
        return gateway_pb2.ListUsersResponse()

    async def ReadServerLog(self, request, context):
        yield gateway_pb2.ReadServerLogResponse(lines=["one"])


@pytest.fixture
async def gateway(
    one_settings: Settings, start_member: Callable[..., Awaitable[object]], connect: Callable[..., grpc.aio.Channel]
) -> gateway_pb2_grpc.GatewayServiceStub:
    await start_member(
        one_settings,
        "gateway",
        lambda member: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(EchoGateway(), member.server),
    )
    return gateway_pb2_grpc.GatewayServiceStub(connect(one_settings, "gateway"))


async def test_a_request_that_breaks_rules_is_refused_naming_every_field(gateway, as_caller) -> None:
    request = gateway_pb2.CreateUserRequest(username="7 wrong", password="short")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.CreateUser(request, metadata=as_caller("root", "admin"))
    found = details(caught.value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert found["ErrorInfo"].reason == "INVALID_FIELD"
    assert [item.field for item in found["BadRequest"].field_violations] == ["username", "password"]


@pytest.mark.parametrize(
    "header", [None, "not base64!", "bm90IGpzb24", "W10", "e30", "eyJzdWIiOiAieCIsICJzY29wZXMiOiA3fQ"]
)
async def test_missing_or_malformed_claims_are_unauthenticated(gateway, header) -> None:
    metadata = [("x-llamesh-claims", header)] if header else []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.GetServer(gateway_pb2.GetServerRequest(server_uuid="x"), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert details(caught.value)["ErrorInfo"].reason == "UNAUTHENTICATED"


async def test_a_missing_scope_is_refused_and_named(gateway, as_caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.ListUsers(gateway_pb2.ListUsersRequest(), metadata=as_caller("ada", "manage"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert dict(details(caught.value)["ErrorInfo"].metadata) == {"scope": "admin"}


async def test_the_right_scope_passes_and_an_administrator_passes_everywhere(gateway, as_caller) -> None:
    for scope in ("manage", "admin"):
        answer = await gateway.GetServer(
            gateway_pb2.GetServerRequest(server_uuid="x"), metadata=as_caller("ada", scope)
        )
        assert answer.server_uuid == "x"


async def test_streams_are_guarded_like_single_answers(gateway, as_caller) -> None:
    request = gateway_pb2.ReadServerLogRequest(server_uuid="x", replica=5000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(gateway.ReadServerLog(request)))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(gateway.ReadServerLog(request, metadata=as_caller("ada", "manage"))))
    assert [item.field for item in details(caught.value)["BadRequest"].field_violations] == ["replica"]
    request.replica = 0
    lines = [item.lines[0] async for item in gateway.ReadServerLog(request, metadata=as_caller("ada", "manage"))]
    assert lines == ["one"]


async def test_a_method_without_handler_is_unimplemented(gateway, as_caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.GetUser(gateway_pb2.GetUserRequest(username="ada"), metadata=as_caller("root", "admin"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
