"""Every call of every contract, while PostgreSQL is stopped, frozen or locked: answered in time, from what is known or as UNAVAILABLE.

The calls are found in the descriptors, so that a new one is tested too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import grpc
import pytest
from argon2 import PasswordHasher
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

import controller.service as controller_process
import services.contract.service as contract_process
import services.download.service as download_process
import services.gateway.service as gateway_process
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.errors import DETAILS_KEY
from llamesh.kit.rights import START_PATIENCE
from llamesh.kit.serving import DATABASE_SERVICE
from llamesh.v1 import (
    admission_pb2,
    contract_pb2,
    controller_pb2,
    controller_pb2_grpc,
    download_pb2,
    gateway_pb2,
    gateway_pb2_grpc,
    server_pb2,
)
from services.gateway import health
from services.gateway.passwords import Passwords
from tests.contract.conftest import AsCaller, Connect, StartMain
from tests.own_postgres import OwnPostgres, own_postgres

MEMBERS = {
    "gateway": (gateway_pb2, gateway_process.run),
    "contract": (contract_pb2, contract_process.run),
    "download": (download_pb2, download_process.run),
    "controller": (controller_pb2, controller_process.run),
}
MODULES = [(name, module) for name, (module, _) in MEMBERS.items()] + [("contract", admission_pb2)]
CALLS = [
    (name, method)
    for name, module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]

SAMPLES: dict[str, Any] = {
    "model_uuid": "m1",
    "server_uuid": "0f0c6a0e-2b0d-4b4e-9a52-7f4f7c1f8f10",
    "username": "admin",
    "password": "correct horse battery",
    "old_password": "",
    "subject": "admin",
    "owner": "admin",
    "contract_id": "ctr_1",
    "key_id": "key_1",
    "token_id": "key_1",
    "decision_id": "dec_1",
    "display_name": "laptop",
    "source": "https://models.example/a.gguf",
    "replicas": 1,
    "request_id": "request_1",
    "lifetime_seconds": 60,
    "role": 2,
    "scopes": ["manage"],
    "models": ["*"],
}
"""Values of fields that contracts demand, by name. A call that they are not valid for fails the test."""
FIELDS = {"CreateContract": {"contract_id"}, "CreateKey": {"contract_id"}, "CreateUser": {"contract_id"}}
"""Fields that a call is to be made without, so that it gets as far as writing."""

SECONDS = 1.0
LONGEST = 30.0
"""No call takes longer on a busy machine: a few deadlines one after the other. Without them it would be minutes."""


@dataclass
class Mesh:
    """All four members in this process, on one PostgreSQL."""

    settings: Settings
    server: OwnPostgres
    channels: dict[str, grpc.aio.Channel]
    caller: list[tuple[str, str]]

    async def call(self, name: str, method: MethodDescriptor) -> tuple[str, Any, float]:
        """Make one call; its code, ErrorInfo with RetryInfo, and seconds."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        answer = message_factory.GetMessageClass(method.output_type).FromString
        make = self.channels[name].unary_stream if method.server_streaming else self.channels[name].unary_unary
        call = make(path, request_serializer=_serialise, response_deserializer=answer)
        began = time.monotonic()
        try:
            under_way = call(sample(method), metadata=self.caller, timeout=LONGEST, wait_for_ready=True)
            if method.server_streaming:
                await under_way.read()
                under_way.cancel()
            else:
                await under_way
        except grpc.aio.AioRpcError as error:
            return error.code().name, details(error), time.monotonic() - began
        return "OK", None, time.monotonic() - began

    async def health(self) -> dict[str, str]:
        report = await gateway_pb2_grpc.GatewayServiceStub(self.channels["gateway"]).GetHealth(
            gateway_pb2.GetHealthRequest(), timeout=LONGEST, wait_for_ready=True
        )
        return {item.name: gateway_pb2.HealthState.Name(item.status)[13:] for item in report.components}


def _serialise(message: Message) -> bytes:
    return message.SerializeToString()


def sample(method: MethodDescriptor) -> Message:
    request = message_factory.GetMessageClass(method.input_type)()
    for field in method.input_type.fields:
        if field.name in FIELDS.get(method.name, set()):
            continue
        if field.name in SAMPLES and field.message_type is None:
            if field.is_repeated:
                getattr(request, field.name).extend(SAMPLES[field.name])
            else:
                setattr(request, field.name, SAMPLES[field.name])
        elif field.type == FieldDescriptor.TYPE_MESSAGE and field.name in ("spec", "changes"):
            getattr(request, field.name).replicas = 1
            if field.name == "spec":
                request.spec.model_uuid = SAMPLES["model_uuid"]  # type: ignore[attr-defined]
    return request


def details(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str], bool]:
    """Reason, metadata, and whether it is said when to try again."""
    reason, metadata, retry = "", {}, False
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    reason, metadata = info.reason, dict(info.metadata)
                retry = retry or detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR)
    return reason, metadata, retry


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as running:
        yield running


@pytest.fixture
async def mesh(
    one_settings: Settings,
    server: OwnPostgres,
    start_main: StartMain,
    connect: Connect,
    as_caller: AsCaller,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Mesh]:
    cheap = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    monkeypatch.setattr("services.gateway.service.Passwords", lambda: Passwords(cheap))
    monkeypatch.setattr(health, "FRESH", -1.0)
    name = f"mesh_{time.monotonic_ns()}"
    url = await asyncio.to_thread(server.create, name)
    settings = one_settings.model_copy(
        update={"database_url": SecretStr(url), "database_seconds": SECONDS, "jwt_algorithm": "EdDSA"}
    )
    for member, (_, main) in MEMBERS.items():
        await start_main(settings, member, main)
    channels = {member: connect(settings, member) for member in MEMBERS}
    declared = await declare(controller_pb2_grpc.ControllerServiceStub(channels["controller"]))
    monkeypatch.setitem(SAMPLES, "server_uuid", declared.server_uuid)
    mesh = Mesh(settings, server, channels, as_caller("admin", "admin", "manage"))
    watch = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].methods_by_name["Watch"]
    async with asyncio.timeout(LONGEST):
        # The gateway has heard from all siblings what there is.
        while (await mesh.call("gateway", watch))[0] != "OK":
            await asyncio.sleep(0.05)
    yield mesh
    server.thaw()


async def declare(controller: Any) -> server_pb2.Server:
    """Declare a server. On a busy machine the database may need longer than the deadline of these tests."""
    spec = server_pb2.ServerSpec(model_uuid="m1", model_name="m", replicas=1)
    async with asyncio.timeout(LONGEST):
        while True:
            try:
                return await controller.DeclareServer(
                    controller_pb2.DeclareServerRequest(spec=spec, owner="admin"), wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)


async def every_call(mesh: Mesh) -> dict[str, tuple[str, Any, float]]:
    answers = await asyncio.gather(*(mesh.call(name, method) for name, method in CALLS))
    return {method.full_name: answer for (_, method), answer in zip(CALLS, answers, strict=True)}


def assert_bounded(answers: dict[str, tuple[str, Any, float]], components: Sequence[str] = ("database",)) -> None:
    for call, (code, said, seconds) in answers.items():
        assert code not in ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"), (call, code, said)
        assert seconds < LONGEST, call
        if code == "UNAVAILABLE":
            reason, metadata, retry = said
            assert (reason, retry) == ("COMPONENT_UNAVAILABLE", True), (call, said)
            assert metadata["component"] in components, (call, said)


def unavailable(answers: dict[str, tuple[str, Any, float]]) -> set[str]:
    return {call.removeprefix("llamesh.v1.") for call, (code, _, _) in answers.items() if code == "UNAVAILABLE"}


async def until_health(mesh: Mesh, state: str) -> dict[str, str]:
    async with asyncio.timeout(LONGEST):
        while (found := await mesh.health())["database"] != state:
            await asyncio.sleep(0.05)
    return found


async def until_all_work(mesh: Mesh) -> None:
    async with asyncio.timeout(2 * LONGEST):
        while unavailable(await every_call(mesh)):
            await asyncio.sleep(0.1)


NEED_THE_DATABASE = {
    "GatewayService.CreateToken",
    "GatewayService.ListUsers",
    "GatewayService.ListModels",
    "ContractService.ListKeys",
    "ContractService.CreateContract",
    "ContractService.ListDecisions",
    "ContractService.ListUsage",
    "DownloadService.StartDownload",
    "DownloadService.ListDownloads",
    "ControllerService.DeclareServer",
    "ControllerService.RemoveServer",
}
FROM_MEMORY = {
    "GatewayService.GetHealth",
    "GatewayService.GetPublicKeys",
    "SigningKeyService.ListSigningKeys",
    "ControllerService.GetDeclaredServer",
    "ControllerService.ListDeclaredServers",
    "ControllerService.WakeDeclaredServer",
    "ControllerService.GetCapacity",
    "ContractService.GetPolicy",
}


@pytest.mark.parametrize("state", ["stopped", "frozen"])
async def test_every_call_is_answered_while_the_database_is_away(mesh: Mesh, state: str) -> None:
    assert (await until_health(mesh, "OK"))["database"] == "OK"
    # The keys have been asked for once, as the controller does every few seconds.
    harm: Callable[[], None] = mesh.server.stop if state == "stopped" else mesh.server.freeze
    mend: Callable[[], None] = mesh.server.start if state == "stopped" else mesh.server.thaw
    await asyncio.to_thread(harm)
    try:
        first = await every_call(mesh)
        found = await until_health(mesh, "DOWN")
        second = await every_call(mesh)
    finally:
        await asyncio.to_thread(mend)
    for answers in (first, second):
        assert_bounded(answers)
        assert unavailable(answers) >= NEED_THE_DATABASE
        assert not unavailable(answers) & FROM_MEMORY
    # Only what is away is said to be.
    assert {name: found[name] for name in MEMBERS} == dict.fromkeys(MEMBERS, "OK")
    await until_health(mesh, "OK")
    await until_all_work(mesh)


async def test_every_call_is_answered_while_all_tables_are_locked(mesh: Mesh) -> None:
    await until_health(mesh, "OK")
    locker = await asyncpg.connect(mesh.settings.database_url.get_secret_value())  # type: ignore[union-attr]
    rows = await locker.fetch(
        "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
    )
    transaction = locker.transaction()
    await transaction.start()
    for row in rows:
        await locker.execute(f'LOCK TABLE "{row["schemaname"]}"."{row["tablename"]}" IN ACCESS EXCLUSIVE MODE')
    answers = await every_call(mesh)
    await transaction.rollback()
    await locker.close()
    assert_bounded(answers)
    assert unavailable(answers) >= NEED_THE_DATABASE - {"GatewayService.CreateToken"} | {"GatewayService.ListUsers"}
    await until_all_work(mesh)


async def test_a_member_that_starts_without_its_database_waits_and_says_so(
    one_settings: Settings, server: OwnPostgres, connect: Connect, start_main: StartMain, as_caller: AsCaller
) -> None:
    url = await asyncio.to_thread(server.create, f"mesh_{time.monotonic_ns()}")
    settings = one_settings.model_copy(update={"database_url": SecretStr(url), "database_seconds": SECONDS})
    for name in MEMBERS:
        # Alembic has one context for a process; members are processes of their own elsewhere.
        database = open_database(settings, name)
        await database.migrate("controller" if name == "controller" else f"services.{name}")
        await database.close()
    await asyncio.to_thread(server.stop)
    starting = {name: asyncio.create_task(start_main(settings, name, main)) for name, (_, main) in MEMBERS.items()}
    mesh = Mesh(settings, server, {name: connect(settings, name) for name in MEMBERS}, as_caller("admin", "admin"))
    try:
        for name in MEMBERS:
            asked = health_pb2_grpc.HealthStub(mesh.channels[name])
            for service in ("", DATABASE_SERVICE):
                request = health_pb2.HealthCheckRequest(service=service)
                answer = await asked.Check(request, wait_for_ready=True, timeout=20)
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING, name
        assert (await mesh.health())["database"] == "DOWN"
        answers = await every_call(mesh)
        assert not any(task.done() for task in starting.values())
    finally:
        await asyncio.to_thread(server.start)
    # It is not known what anybody may do. The cause is: no call waits for the gateway, or names it.
    assert_bounded(answers)
    refused = {call: seconds for call, (code, _, seconds) in answers.items() if code == "UNAVAILABLE"}
    assert max(refused.values()) < START_PATIENCE, refused
    assert unavailable(answers) >= NEED_THE_DATABASE
    await asyncio.gather(*starting.values())
    await until_health(mesh, "OK")
