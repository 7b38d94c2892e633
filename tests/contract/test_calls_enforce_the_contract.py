"""What the call layer refuses before a handler runs: requests that break rules, callers without claims or scope."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable

import grpc
import pytest
from google.protobuf import descriptor_pool

from llamesh.kit.config import Settings
from llamesh.kit.methods import method_of
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc, options_pb2, server_pb2
from tests.contract.rich_status import refused


class EchoGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """A fake of the gateway: answers with what it was asked."""

    async def GetServer(self, request, context):
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
    with refused("INVALID_FIELD") as refusal:
        await gateway.CreateUser(request, metadata=as_caller("root", "admin"))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.fields == ["username", "password"]
    assert refusal.metadata == {"fields": "username,password"}
    assert "short" not in refusal.message


async def test_fields_within_fields_and_lists_are_named_by_their_path(gateway, as_caller) -> None:
    ada = as_caller("ada", "manage")
    changes = server_pb2.ServerChanges(replicas=0, parameters=server_pb2.RuntimeParameters(ctx_size=1))
    with refused("INVALID_FIELD") as refusal:
        await gateway.UpdateServer(gateway_pb2.UpdateServerRequest(server_uuid="x", changes=changes), metadata=ada)
    assert refusal.fields == ["changes.replicas", "changes.parameters.ctx_size"]
    with refused("INVALID_FIELD") as refusal:
        await anext(aiter(gateway.Watch(gateway_pb2.WatchRequest(kinds=[1, 99]), metadata=ada)))
    assert refusal.fields == ["kinds[1]"]


@pytest.mark.parametrize(
    "header", [None, "not base64!", "bm90IGpzb24", "W10", "e30", "eyJzdWIiOiAieCIsICJzY29wZXMiOiA3fQ"]
)
async def test_missing_or_malformed_claims_are_unauthenticated(gateway, header) -> None:
    metadata = [("x-llamesh-claims", header)] if header else []
    with refused("UNAUTHENTICATED") as refusal:
        await gateway.GetServer(gateway_pb2.GetServerRequest(server_uuid="x"), metadata=metadata)
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED


async def test_authentication_is_checked_before_the_fields_of_a_request(gateway) -> None:
    with refused("UNAUTHENTICATED"):
        await gateway.CreateUser(gateway_pb2.CreateUserRequest())


async def test_a_missing_scope_is_refused_and_named(gateway, as_caller) -> None:
    for scopes in ((), ("manage", "infer:*"), ("ADMIN", "admin ")):
        with refused("SCOPE_MISSING") as refusal:
            await gateway.ListUsers(gateway_pb2.ListUsersRequest(), metadata=as_caller("ada", *scopes))
        assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
        assert refusal.metadata == {"scope": "admin"}


async def test_the_right_scope_passes_and_an_administrator_passes_everywhere(gateway, as_caller) -> None:
    for scope in ("manage", "admin"):
        answer = await gateway.GetServer(
            gateway_pb2.GetServerRequest(server_uuid="x"), metadata=as_caller("ada", scope)
        )
        assert answer.server_uuid == "x"


async def test_streams_are_guarded_like_single_answers(gateway, as_caller) -> None:
    request = gateway_pb2.ReadServerLogRequest(server_uuid="x", replica=5000)
    with refused("UNAUTHENTICATED"):
        await anext(aiter(gateway.ReadServerLog(request)))
    with refused("INVALID_FIELD") as refusal:
        await anext(aiter(gateway.ReadServerLog(request, metadata=as_caller("ada", "manage"))))
    assert refusal.fields == ["replica"]
    request.replica = 0
    lines = [item.lines[0] async for item in gateway.ReadServerLog(request, metadata=as_caller("ada", "manage"))]
    assert lines == ["one"]


async def test_bytes_that_are_no_such_message_are_refused_in_words_of_our_own(
    gateway, one_settings, connect, as_caller
) -> None:
    channel, ada = connect(one_settings, "gateway"), as_caller("ada", "manage")
    for data in (b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f", b"\x07"):
        with refused("INVALID_FIELD") as refusal:
            await channel.unary_unary("/llamesh.v1.GatewayService/GetServer")(data, metadata=ada)
        assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
        assert "protobuf" not in refusal.message
        with refused("INVALID_FIELD"):
            await anext(aiter(channel.unary_stream("/llamesh.v1.GatewayService/ReadServerLog")(data, metadata=ada)))
        with refused("UNAUTHENTICATED"):
            await channel.unary_unary("/llamesh.v1.GatewayService/GetServer")(data)


async def test_a_token_with_many_scopes_is_no_matter(gateway, as_caller) -> None:
    many = [f"infer:model-of-a-team-{number}" for number in range(1000)]
    answer = await gateway.GetServer(
        gateway_pb2.GetServerRequest(server_uuid="x"), metadata=as_caller("ada", "manage", *many)
    )
    assert answer.server_uuid == "x"


async def test_a_method_without_handler_is_not_implemented(gateway, as_caller) -> None:
    with refused("NOT_IMPLEMENTED") as refusal:
        await gateway.GetUser(gateway_pb2.GetUserRequest(username="ada"), metadata=as_caller("root", "admin"))
    assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
    assert refusal.metadata == {"call": "llamesh.v1.GatewayService/GetUser"}


def test_every_method_of_the_mesh_declares_its_access() -> None:
    """A method without `access` would take any token without scope; one that wants that says so with `scope: ""`."""
    for name in ("gateway", "contract", "download", "controller", "admission"):
        importlib.import_module(f"llamesh.v1.{name}_pb2")
        file = descriptor_pool.Default().FindFileByName(f"llamesh/v1/{name}.proto")
        for service in file.services_by_name.values():
            for method in service.methods:
                assert method.GetOptions().HasExtension(options_pb2.access), method.full_name


@pytest.mark.parametrize(
    ("call", "fields"),
    [
        ("DownloadService/StartDownload", ("model_uuid",)),
        ("DownloadService/CancelDownload", ("model_uuid",)),
        ("DownloadService/DeleteDownload", ("model_uuid",)),
        ("QuantService/CancelQuantJob", ("job_id",)),
        ("QuantService/RetryQuantJob", ("job_id",)),
        ("QuantService/DeleteQuantJob", ("job_id",)),
        ("QuantService/DeleteQuantModel", ("model_uuid",)),
        ("GatewayService/Stop", ("server_uuid",)),
        ("GatewayService/DeleteUser", ("username",)),
        ("GatewayService/ListUsers", ()),
        ("CatalogueService/LocateModel", ()),
    ],
)
def test_what_a_call_is_about_is_known_from_the_path_of_its_route(call: str, fields: tuple[str, ...]) -> None:
    for name in ("gateway", "download", "quant"):
        importlib.import_module(f"llamesh.v1.{name}_pb2")
    assert method_of(f"/llamesh.v1.{call}").target == fields


async def test_a_condition_that_a_call_cannot_keep_is_refused_over_grpc(gateway, as_caller) -> None:
    metadata = [*as_caller("root", "admin"), ("if-match", '"99"')]
    with refused("INVALID_FIELD") as refusal:
        await gateway.ListUsers(gateway_pb2.ListUsersRequest(), metadata=metadata)
    assert refusal.fields == ["If-Match"]
    with refused("INVALID_FIELD") as refusal:
        await anext(aiter(gateway.ReadServerLog(gateway_pb2.ReadServerLogRequest(server_uuid="x"), metadata=metadata)))
    assert refusal.fields == ["If-Match"]
    # A call with an etag decides by itself.
    with refused("NOT_IMPLEMENTED"):
        await gateway.Stop(gateway_pb2.StopRequest(server_uuid="x"), metadata=metadata)
