"""What a failing handler shows: its reason to the caller across every hop, nothing of itself, and one line to the log."""

from __future__ import annotations

import asyncio

import grpc
import pytest
import structlog

from llamesh.kit.channels import asking, call_options
from llamesh.kit.errors import FieldViolation, MeshError, Reason
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused

SECRET_TEXT = "hunter2-in-the-exception"


class FailingGateway(gateway_pb2_grpc.GatewayServiceServicer):
    """A fake of the gateway whose calls fail, each in its way; GetServer asks the one at `behind`."""

    def __init__(self, behind: gateway_pb2_grpc.GatewayServiceStub | None = None) -> None:
        self.behind = behind
        self.deadline = PATIENCE
        self.seen: list[dict[str, str]] = []
        self.cancelled = asyncio.Event()

    async def CreateToken(self, request, context):
        raise RuntimeError(SECRET_TEXT)

    async def GetModel(self, request, context):
        raise MeshError(
            Reason.ERROR_REASON_MODEL_NOT_READY,
            "still being fetched",
            {"modelUuid": request.model_uuid, "percent": 7},
            (FieldViolation("model_uuid", "not yet"),),
            retry_after=1.5,
        )

    async def GetServer(self, request, context):
        self.seen.append(dict(context.invocation_metadata()))
        if self.behind is None:
            raise MeshError(Reason.ERROR_REASON_SERVER_NOT_FOUND, "no such server", {"serverUuid": "x"}, retry_after=2)
        with asking("controller"):
            return await self.behind.GetServer(request, **call_options(self.deadline))

    async def Stop(self, request, context):
        with asking("controller"):
            return await self.behind.Stop(request, **call_options(self.deadline))

    async def ReadServerLog(self, request, context):
        yield gateway_pb2.ReadServerLogResponse(lines=["one"])
        raise RuntimeError(SECRET_TEXT)

    async def Watch(self, request, context):
        yield gateway_pb2.WatchResponse(synced=True)
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.fixture
def start_gateway(one_settings, start_member, connect):
    async def start(servicer, name="gateway"):
        await start_member(
            one_settings,
            name,
            lambda member: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, member.server),
        )
        return gateway_pb2_grpc.GatewayServiceStub(connect(one_settings, name))

    return start


async def test_an_unknown_exception_is_internal_and_shows_nothing_of_itself(start_gateway) -> None:
    gateway = await start_gateway(FailingGateway())
    with structlog.testing.capture_logs() as lines, refused("INTERNAL") as refusal:
        await gateway.CreateToken(
            gateway_pb2.CreateTokenRequest(username="ada", password="p4ssw0rd"), metadata=[("x-request-id", "r-77")]
        )
    assert refusal.code is grpc.StatusCode.INTERNAL
    assert refusal.message == "internal error; request id r-77"
    assert refusal.metadata == {"requestId": "r-77"}
    failed, called = lines
    assert (failed["event"], failed["request_id"], str(failed["exc_info"])) == ("call failed", "r-77", SECRET_TEXT)
    assert (called["event"], called["code"], called["method"]) == (
        "call",
        "INTERNAL",
        "/llamesh.v1.GatewayService/CreateToken",
    )
    assert "p4ssw0rd" not in str(lines)
    assert SECRET_TEXT not in str(called)


async def test_a_stream_that_fails_keeps_its_earlier_messages(start_gateway, as_caller) -> None:
    gateway = await start_gateway(FailingGateway())
    request = gateway_pb2.ReadServerLogRequest(server_uuid="x")
    parts = aiter(gateway.ReadServerLog(request, metadata=as_caller("ada", "manage")))
    assert (await anext(parts)).lines == ["one"]
    with refused("INTERNAL"):
        await anext(parts)


async def test_a_refusal_arrives_whole(start_gateway, as_caller) -> None:
    gateway = await start_gateway(FailingGateway())
    with refused("MODEL_NOT_READY") as refusal:
        await gateway.GetModel(gateway_pb2.GetModelRequest(model_uuid="m1"), metadata=as_caller("ada", "manage"))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.message == "still being fetched"
    assert refusal.metadata == {"modelUuid": "m1", "percent": "7"}
    assert refusal.fields == ["model_uuid"]
    assert refusal.retry_after == 1.5
    assert refusal.remedy.startswith("Wait until")


async def test_each_call_logs_one_line_with_caller_and_duration_and_no_secret(start_gateway, as_caller) -> None:
    gateway = await start_gateway(FailingGateway())
    metadata = [*as_caller("ada", "manage"), ("x-request-id", "r-1"), ("authorization", "Bearer s3cr3t")]
    with structlog.testing.capture_logs() as lines, refused("MODEL_NOT_READY"):
        await gateway.GetModel(gateway_pb2.GetModelRequest(model_uuid="m1"), metadata=metadata)
    (line,) = lines
    assert 0 <= line.pop("ms") < PATIENCE * 1000
    assert line == {
        "event": "call",
        "log_level": "info",
        "method": "/llamesh.v1.GatewayService/GetModel",
        "code": "FAILED_PRECONDITION",
        "request_id": "r-1",
        "subject": "ada",
        "model_uuid": "m1",
        "error": "MODEL_NOT_READY: still being fetched",
    }


async def test_a_call_without_request_id_gets_one(start_gateway, as_caller) -> None:
    front = FailingGateway(behind=await start_gateway(back := FailingGateway(), "controller"))
    gateway = await start_gateway(front)
    with refused("SERVER_NOT_FOUND"):
        await gateway.GetServer(gateway_pb2.GetServerRequest(server_uuid="x"), metadata=as_caller("ada", "manage"))
    assert "x-request-id" not in front.seen[0]
    assert len(back.seen[0]["x-request-id"]) == 32


async def test_reason_numbers_and_caller_cross_a_hop(start_gateway, as_caller) -> None:
    front = FailingGateway(behind=await start_gateway(back := FailingGateway(), "controller"))
    gateway = await start_gateway(front)
    metadata = [*as_caller("ada", "manage", contract="ctr_1"), ("x-request-id", "r-9")]
    with refused("SERVER_NOT_FOUND") as refusal:
        await gateway.GetServer(gateway_pb2.GetServerRequest(server_uuid="x"), metadata=metadata)
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert (refusal.message, refusal.metadata, refusal.retry_after) == ("no such server", {"serverUuid": "x"}, 2)
    for header in ("x-llamesh-claims", "x-request-id"):
        assert back.seen[0][header] == front.seen[0][header]


async def test_another_members_own_failure_and_silence_are_told_apart(
    start_gateway, as_caller, connect, one_settings
) -> None:
    stub = gateway_pb2_grpc.GatewayServiceStub(connect(one_settings, "controller"))
    gateway = await start_gateway(servicer := FailingGateway(behind=stub))
    servicer.deadline = 0.2
    ada = as_caller("ada", "manage")
    with refused("COMPONENT_UNAVAILABLE") as refusal:
        await gateway.Stop(gateway_pb2.StopRequest(server_uuid="x"), metadata=ada)
    assert (refusal.code, refusal.metadata) == (grpc.StatusCode.UNAVAILABLE, {"component": "controller"})
    assert refusal.retry_after == 1

    class Broken(gateway_pb2_grpc.GatewayServiceServicer):
        async def Stop(self, request, context):
            await context.abort(grpc.StatusCode.INTERNAL, SECRET_TEXT)

    await start_gateway(Broken(), "controller")
    servicer.deadline = PATIENCE
    with refused("INTERNAL") as refusal:
        await gateway.Stop(gateway_pb2.StopRequest(server_uuid="x"), metadata=ada)
    assert refusal.message == "the controller service failed"


async def test_a_client_that_leaves_ends_its_handler(start_gateway, as_caller) -> None:
    gateway = await start_gateway(servicer := FailingGateway())
    stream = gateway.Watch(gateway_pb2.WatchRequest(), metadata=as_caller("ada", "manage"))
    await anext(aiter(stream))
    stream.cancel()
    async with asyncio.timeout(PATIENCE):
        await servicer.cancelled.wait()


async def test_reads_by_members_and_probes_leave_no_line_but_their_failures_do(start_gateway) -> None:
    class Healthy(gateway_pb2_grpc.GatewayServiceServicer):
        fail = False

        async def GetHealth(self, request, context):
            if self.fail:
                raise RuntimeError
            return gateway_pb2.Health()

    gateway = await start_gateway(servicer := Healthy())
    with structlog.testing.capture_logs() as lines:
        await gateway.GetHealth(gateway_pb2.GetHealthRequest())
    assert [line["log_level"] for line in lines] == ["debug"]
    servicer.fail = True
    with structlog.testing.capture_logs() as lines, refused("INTERNAL"):
        await gateway.GetHealth(gateway_pb2.GetHealthRequest())
    assert [line["log_level"] for line in lines] == ["error", "info"]


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
@pytest.mark.parametrize("method", ["/llamesh.v1.GatewayService/Nope", "/llamesh.v1.Nope/Get", "/odd.Service/Get"])
async def test_an_unknown_call_is_not_implemented(one_settings, start_gateway, connect, kind: str, method: str) -> None:
    await start_gateway(FailingGateway())
    multicallable = getattr(connect(one_settings, "gateway"), kind)(method)
    # No message where one may be left out: the answer may come first, and to send then is a failure of its own.
    request = iter([]) if kind.startswith("stream") else b"x"
    with refused("NOT_IMPLEMENTED") as refusal:
        call = multicallable(request)
        if kind.endswith("stream"):
            async for _ in call:
                pass
        else:
            await call
    assert refusal.code is grpc.StatusCode.UNIMPLEMENTED
    assert refusal.metadata == {"call": method.strip("/")}
    assert method.strip("/") in refusal.message
    assert refusal.remedy
