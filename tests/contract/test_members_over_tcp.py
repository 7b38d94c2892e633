"""Over TCP a member answers only members of its mesh, each only what it is meant to call, whatever headers a caller sends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llamesh.kit.channels import channel
from llamesh.kit.errors import StartRefused
from llamesh.kit.member_calls import CALLS, may_call
from llamesh.kit.serving import Member
from llamesh.names import ENVOY, MEMBERS
from llamesh.v1 import (
    admission_pb2,
    checkpoint_pb2,
    contract_pb2,
    controller_pb2,
    download_pb2,
    gateway_pb2,
    gateway_pb2_grpc,
    metrics_pb2,
    options_pb2,
    quant_pb2,
)
from tests.contract.patience import PATIENCE
from tests.contract.secured import DOMAIN, Secured, files_of

FILES = (gateway_pb2, contract_pb2, admission_pb2, download_pb2, checkpoint_pb2, controller_pb2, quant_pb2, metrics_pb2)
OTHERS = (
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/envoy.service.auth.v3.Authorization/Check",
    "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
)


def methods() -> Iterator[MethodDescriptor]:
    """Every method of every contract."""
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            yield from service.methods


NAMES = [f"/{each.containing_service.full_name}/{each.name}" for each in methods()]


class Handlers(grpc.GenericRpcHandler):
    """Answers every method with nothing, and notes that it ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def service(self, details):
        if details.method not in (*NAMES, *OTHERS[2:]):
            return None

        async def answer(_request, _context):
            self.ran.append(details.method)
            return b""

        async def stream(_request, _context):
            self.ran.append(details.method)
            yield b""

        streaming = details.method in STREAMS
        make = grpc.unary_stream_rpc_method_handler if streaming else grpc.unary_unary_rpc_method_handler
        return make(stream if streaming else answer, _decoder(details.method), bytes)


STREAMS = {f"/{each.containing_service.full_name}/{each.name}" for each in methods() if each.server_streaming} | {
    OTHERS[4]
}


def _decoder(method: str):
    try:
        found = descriptor_pool.Default().FindMethodByName(method.strip("/").replace("/", "."))
    except KeyError:
        return bytes
    return found.input_type._concrete_class.FromString


@pytest.fixture
def secured(one_settings, tmp_path):
    return Secured(one_settings, tmp_path / "certificates")


@pytest.fixture
async def served(secured, start_member):
    """All handlers on one member, named contract, over TCP."""
    handlers = Handlers()
    await start_member(secured.settings, "contract", lambda member: member.server.add_generic_rpc_handlers((handlers,)))
    return handlers


async def call(connection: grpc.aio.Channel, method: str, metadata=()) -> grpc.aio.AioRpcError | None:
    """Call a method with an empty request; return its error."""
    kind = connection.unary_stream if method in STREAMS else connection.unary_unary
    made = kind(method, request_serializer=bytes, response_deserializer=bytes)(
        b"", timeout=PATIENCE, metadata=list(metadata)
    )
    try:
        if method in STREAMS:
            async for _ in made:
                return None
        else:
            await made
    except grpc.aio.AioRpcError as error:
        return error
    return None


def reason(error: grpc.aio.AioRpcError) -> str:
    """The reason of the contract that an error carries."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = error_details_pb2.ErrorInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(info):
                    return info.reason
    return ""


def forged(as_caller) -> list[tuple[str, str]]:
    """All headers by which a member is told who calls, as an administrator has them."""
    return [*as_caller("admin", "admin", "manage", "metrics", "infer:*"), ("x-forwarded-proto", "http")]


async def test_a_member_reaches_its_sibling_by_name_over_tcp(secured, start_member) -> None:
    await start_member(secured.settings, "contract", lambda member: None)
    secured.settings.socket("contract").unlink()
    async with channel(secured.settings, "contract", "gateway") as connection:
        answer = await health_pb2_grpc.HealthStub(connection).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("kind", ["no certificate", "another authority", "expired", "another mesh's name"])
async def test_a_stranger_gets_nothing_whatever_headers_it_sends(secured, served, as_caller, tmp_path, kind) -> None:
    now = datetime.now(UTC)
    other = tmp_path / "other"
    files = {
        "no certificate": lambda: None,
        "another authority": lambda: files_of(other, DOMAIN, "gateway", now),
        "expired": lambda: files_of(secured.folder, DOMAIN, "gateway", now - timedelta(days=2)),
        "another mesh's name": lambda: files_of(secured.folder, "other.test", "gateway", now),
    }
    connection = secured.stranger("contract", files[kind]())
    for method in (*NAMES, *OTHERS):
        error = await call(connection, method, forged(as_caller))
        assert error is not None, method
        if kind == "another mesh's name":
            assert (error.code(), reason(error)) == (grpc.StatusCode.UNAUTHENTICATED, "MEMBER_UNKNOWN"), method
        else:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, method
    await connection.close()
    assert served.ran == []


@pytest.mark.parametrize("member", MEMBERS)
async def test_a_member_may_call_what_the_table_lists_and_nothing_else(secured, served, as_caller, member) -> None:
    connection = secured.stranger("contract", secured.files(member))
    for method in (*NAMES, *OTHERS[2:]):
        before = len(served.ran)
        error = await call(connection, method, as_caller("admin", "admin") if member != "controller" else ())
        if may_call(member, method):
            # The empty request may be invalid: then the contract refuses it, not the certificate.
            assert error is None or not reason(error).startswith("MEMBER_"), method
        else:
            assert error is not None, method
            assert (error.code(), reason(error)) == (grpc.StatusCode.PERMISSION_DENIED, "MEMBER_REFUSED"), method
            assert len(served.ran) == before, method
    await connection.close()
    assert served.ran, "the table lets the member call something"


async def test_a_member_that_calls_for_itself_only_may_not_forward_an_identity(secured, served, as_caller) -> None:
    connection = secured.stranger("contract", secured.files("controller"))
    method = "/llamesh.v1.AdmissionService/WatchRevocations"
    assert await call(connection, method) is None
    error = await call(connection, method, as_caller("admin", "admin"))
    await connection.close()
    assert error is not None
    assert reason(error) == "MEMBER_REFUSED"


async def test_envoy_may_call_no_internal_method() -> None:
    internal = [
        name
        for name, each in zip(NAMES, methods(), strict=True)
        if each.GetOptions().Extensions[options_pb2.access].internal
    ]
    assert [name for name in internal if may_call(ENVOY, name)] == []
    assert len(internal) > 20


async def test_every_method_of_every_contract_has_a_caller() -> None:
    assert [name for name in NAMES if not any(may_call(member, name) for member in MEMBERS)] == []
    known = {service.full_name for file in FILES for service in file.DESCRIPTOR.services_by_name.values()}
    assert {name for name in CALLS if name.startswith("llamesh.v1.")} == known


async def test_the_unix_socket_of_a_member_on_tcp_trusts_this_machine(secured, start_member, as_caller) -> None:
    class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
        async def ListServers(self, request, context):
            return gateway_pb2.ListServersResponse()

    add = gateway_pb2_grpc.add_GatewayServiceServicer_to_server
    await start_member(secured.settings, "gateway", lambda member: add(Gateway(), member.server))
    async with grpc.aio.insecure_channel(f"unix:{secured.settings.socket('gateway')}") as connection:
        stub = gateway_pb2_grpc.GatewayServiceStub(connection)
        await stub.ListServers(gateway_pb2.ListServersRequest(), metadata=as_caller("ada", "manage"), timeout=PATIENCE)


async def test_plaintext_gets_nothing(secured, served, as_caller) -> None:
    async with grpc.aio.insecure_channel(secured.settings.member_addresses["contract"]) as connection:
        error = await call(connection, NAMES[0], forged(as_caller))
    assert error is not None
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert served.ran == []


async def test_a_caller_finds_out_that_the_server_is_another_member(secured, start_member) -> None:
    """The address of a sibling leads to another member, for instance by a wrong setting."""
    await start_member(secured.settings, "contract", lambda member: None)
    addresses = secured.settings.member_addresses
    wrong = secured.settings.model_copy(update={"member_addresses": {**addresses, "download": addresses["contract"]}})
    async with channel(wrong, "download", "gateway") as connection:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await health_pb2_grpc.HealthStub(connection).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tcp_without_certificates_is_refused_in_words(one_settings) -> None:
    settings = one_settings.model_copy(update={"member_addresses": {"contract": "127.0.0.1:1"}})
    with pytest.raises(StartRefused, match="LLAMESH_MEMBER_CERTIFICATES is not"):
        Member("contract", settings)
    with pytest.raises(StartRefused, match="LLAMESH_MEMBER_CERTIFICATES is not"):
        channel(settings, "contract", "gateway")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda secured: secured.replace("contract", key=secured.files("gateway")["tls.key"]), "does not belong to"),
        (lambda secured: secured.replace("contract", ca=b""), "ca.crt is empty"),
        (lambda secured: secured.replace("contract", crt=b"-----BEGIN NOTHING-----"), "no certificates"),
        (lambda secured: secured.replace("contract", **_as(secured.files("gateway"))), "must have the URI"),
    ],
)
async def test_files_that_cannot_be_used_are_refused_in_words(secured, damage, words) -> None:
    damage(secured)
    with pytest.raises(StartRefused, match=words):
        Member("contract", secured.settings)


def _as(files: dict[str, bytes]) -> dict[str, bytes]:
    return {"crt": files["tls.crt"], "key": files["tls.key"], "ca": files["ca.crt"]}


async def test_an_address_that_another_program_has_is_refused_in_words(secured) -> None:
    host, port = secured.settings.member_addresses["contract"].split(":")
    with socket.create_server((host, int(port))):
        member = Member("contract", secured.settings)
        with pytest.raises(StartRefused, match=r"cannot listen at .* LLAMESH_MEMBER_BIND"):
            await member.serve()
        await member.server.stop(None)


@pytest.mark.parametrize("name", ["tls.crt", "tls.key", "ca.crt"])
async def test_a_missing_file_is_named(secured: Secured, name: str) -> None:
    Path(secured.folder / "contract" / "..data" / name).unlink()
    with pytest.raises(StartRefused, match=f"{name} cannot be read: No such file"):
        Member("contract", secured.settings)
