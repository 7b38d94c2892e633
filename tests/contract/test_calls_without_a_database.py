"""Every call of every contract, while PostgreSQL is stopped, frozen or locked: answered in time, from what is known or as UNAVAILABLE.

The calls are found in the descriptors, so that a new one is tested too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
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
from llamesh.kit import rights
from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.errors import DETAILS_KEY
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
from tests.contract.patience import CALM_SECONDS, PATIENCE, available
from tests.own_postgres import OwnPostgres, own_postgres

MEMBERS = {
    "gateway": (gateway_pb2, gateway_process.run),
    "contract": (contract_pb2, contract_process.run),
    "download": (download_pb2, download_process.run),
    "controller": (controller_pb2, controller_process.run),
}
MODULES = [(name, module) for name, (module, _) in MEMBERS.items()] + [("contract", admission_pb2)]
OUTSIDE = {"llamesh.v1.DownloadService.SearchHub"}
"""Calls that a server outside the mesh answers, which no test may reach: test_hub_searches.py has a stand-in for it."""
CALLS = [
    (name, method)
    for name, module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if method.full_name not in OUTSIDE
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
FIELDS = {
    **{name: {"contract_id"} for name in ("CreateContract", "CreateKey", "CreateUser")},
    # The servers of one model are listed before it is deleted, so they are read from the tables.
    "ListDeclaredServers": {"model_uuid"},
}
"""Fields that a call is to be made without, so that it gets as far as writing, or is answered from memory."""

SECONDS = 3.0
"""LLAMESH_DATABASE_SECONDS: short, because calls during an outage take as long; four members on a busy machine need more than 1 s."""
LONGEST = 60.0
"""No call takes longer on a busy machine: a few deadlines one after the other. Without them it would be minutes."""
pytestmark = pytest.mark.timeout(600)


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
        elif field.name == "check":
            request.check.model_uuid = SAMPLES["model_uuid"]  # type: ignore[attr-defined]
            request.subject = "kubernetes:default/chat"  # type: ignore[attr-defined]
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
        # As `llamesh up` does, a member is started again if the database was too slow for its start.
        await available(partial(start_main, settings, member, main))
    channels = {member: connect(settings, member) for member in MEMBERS}
    declare = controller_pb2_grpc.ControllerServiceStub(channels["controller"]).DeclareServer
    spec = server_pb2.ServerSpec(model_uuid="m1", model_name="m", replicas=1)
    request = controller_pb2.DeclareServerRequest(spec=spec, owner="admin", request_id="set-up")
    declared = await available(lambda: declare(request, wait_for_ready=True))
    monkeypatch.setitem(SAMPLES, "server_uuid", declared.server_uuid)
    mesh = Mesh(settings, server, channels, as_caller("admin", "admin", "manage"))
    watch = gateway_pb2.DESCRIPTOR.services_by_name["GatewayService"].methods_by_name["Watch"]
    async with asyncio.timeout(PATIENCE):
        # The gateway has heard from all other members what there is.
        while (await mesh.call("gateway", watch))[0] != "OK":
            await asyncio.sleep(0.05)
    yield mesh
    server.thaw()


Answers = dict[str, tuple[str, Any, float]]


async def every_call(mesh: Mesh, calls: Sequence[tuple[str, MethodDescriptor]] = CALLS) -> Answers:
    answers = await asyncio.gather(*(mesh.call(name, method) for name, method in calls))
    return {method.full_name: answer for (_, method), answer in zip(calls, answers, strict=True)}


def assert_bounded(answers: Answers, components: Sequence[str] = ("database",)) -> None:
    for call, (code, said, seconds) in answers.items():
        assert code not in ("INTERNAL", "UNKNOWN", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"), (call, code, said)
        assert seconds < LONGEST, call
        if code == "UNAVAILABLE":
            reason, metadata, retry = said
            assert (reason, retry) == ("COMPONENT_UNAVAILABLE", True), (call, said)
            assert metadata["component"] in components, (call, said)


def short(call: str) -> str:
    return call.removeprefix("llamesh.v1.")


def unavailable(answers: Answers) -> set[str]:
    return {short(call) for call, (code, _, _) in answers.items() if code == "UNAVAILABLE"}


async def until_health(mesh: Mesh, state: str, members: str = "OK") -> None:
    """Wait until the gateway reports this state of the database, and that one of all members."""
    wanted = dict.fromkeys(MEMBERS, members) | {"database": state}
    async with asyncio.timeout(PATIENCE):
        while not wanted.items() <= (await mesh.health()).items():
            await asyncio.sleep(0.05)


async def until_all_work(mesh: Mesh) -> None:
    """Wait until each call has been answered once. On a busy machine some call or other exceeds its deadline at any time."""
    calls = CALLS
    async with asyncio.timeout(2 * PATIENCE):
        while calls:
            missing = unavailable(await every_call(mesh, calls))
            calls = [(name, method) for name, method in calls if short(method.full_name) in missing]
            await asyncio.sleep(0.1)


@asynccontextmanager
async def locked(mesh: Mesh) -> AsyncIterator[None]:
    """Lock all tables for a `with` block."""
    assert mesh.settings.database_url is not None
    locker = await asyncpg.connect(mesh.settings.database_url.get_secret_value())
    rows = await locker.fetch("SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^pg_|^information'")
    tables = ", ".join(f'"{row["schemaname"]}"."{row["tablename"]}"' for row in rows)
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                transaction = locker.transaction()
                await transaction.start()
                # A member may have one of the tables and wait for another.
                with suppress(asyncpg.DeadlockDetectedError):
                    await locker.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
                    break
                await transaction.rollback()
        yield
        await transaction.rollback()
    finally:
        await locker.close()


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
    await until_health(mesh, "OK")
    # The keys have been asked for once, as the controller does every few seconds.
    harm: Callable[[], None] = mesh.server.stop if state == "stopped" else mesh.server.freeze
    mend: Callable[[], None] = mesh.server.start if state == "stopped" else mesh.server.thaw
    await asyncio.to_thread(harm)
    try:
        first = await every_call(mesh)
        # Only what is away is said to be.
        await until_health(mesh, "DOWN")
        second = await every_call(mesh)
    finally:
        await asyncio.to_thread(mend)
    for answers in (first, second):
        assert_bounded(answers)
        assert unavailable(answers) >= NEED_THE_DATABASE
        assert not unavailable(answers) & FROM_MEMORY
    await until_health(mesh, "OK")
    await until_all_work(mesh)


async def test_every_call_is_answered_while_all_tables_are_locked(mesh: Mesh) -> None:
    await until_health(mesh, "OK")
    async with locked(mesh):
        answers = await every_call(mesh)
    assert_bounded(answers)
    assert unavailable(answers) >= NEED_THE_DATABASE - {"GatewayService.CreateToken"} | {"GatewayService.ListUsers"}
    await until_all_work(mesh)


async def test_a_member_that_starts_without_its_database_waits_and_says_so(
    one_settings: Settings,
    server: OwnPostgres,
    connect: Connect,
    start_main: StartMain,
    as_caller: AsCaller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A call that waited for the gateway would exceed its deadline.
    monkeypatch.setattr(rights, "START_PATIENCE", 10 * LONGEST)
    url = await asyncio.to_thread(server.create, f"mesh_{time.monotonic_ns()}")
    # A stopped server refuses connections at once.
    settings = one_settings.model_copy(update={"database_url": SecretStr(url), "database_seconds": CALM_SECONDS})
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
                answer = await asked.Check(request, wait_for_ready=True, timeout=PATIENCE)
                assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING, name
        assert (await mesh.health())["database"] == "DOWN"
        answers = await every_call(mesh)
        assert not any(task.done() for task in starting.values())
    finally:
        await asyncio.to_thread(server.start)
    # It is not known what anybody may do. The cause is: no call waits for the gateway, or names it.
    assert_bounded(answers)
    assert unavailable(answers) >= NEED_THE_DATABASE
    await asyncio.gather(*starting.values())
    await until_health(mesh, "OK")
