"""The real gateway on its socket, with fakes of the other members around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from argon2 import PasswordHasher

from llamesh.kit.config import Settings
from llamesh.kit.serving import Member
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from services.gateway.passwords import Passwords
from services.gateway.service import run
from tests.contract.conftest import AsCaller, Connect, StartMain, StartMember
from tests.contract.gateway.fakes import FakeContract, FakeController, FakeDownload


@dataclass
class Mesh:
    """The gateway, how to speak to it, and what stands around it."""

    settings: Settings
    gateway: gateway_pb2_grpc.GatewayServiceStub
    keys: gateway_pb2_grpc.SigningKeyServiceStub
    contract: FakeContract
    download: FakeDownload
    controller: FakeController
    members: dict[str, Member] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def _cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes at their real cost would take most of these tests' time; tests/unit has them."""
    cheap = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)
    monkeypatch.setattr("services.gateway.service.Passwords", lambda: Passwords(cheap))


@pytest.fixture
async def start_mesh(start_main: StartMain, start_member: StartMember, connect: Connect, as_caller: AsCaller):
    """`mesh = await start_mesh(settings)`; `without=("contract",)` leaves members out."""

    async def start(settings: Settings, without: tuple[str, ...] = (), users: tuple[str, ...] = ()) -> Mesh:
        download = FakeDownload()
        fakes = {"contract": FakeContract(download.models), "download": download, "controller": FakeController()}
        members = {
            name: await start_member(settings, name, fake.register)
            for name, fake in fakes.items()
            if name not in without
        }
        if "download" in members:
            for part in ("store", "store.credentials"):
                members["download"].show_part(part, True)
        members["gateway"] = await start_main(settings, "gateway", run)
        channel = connect(settings, "gateway")
        gateway = gateway_pb2_grpc.GatewayServiceStub(channel)
        for name in users:
            request = gateway_pb2.CreateUserRequest(username=name, password="correct horse")
            await gateway.CreateUser(request, metadata=as_caller("admin", "admin"))
        return Mesh(
            settings,
            gateway,
            gateway_pb2_grpc.SigningKeyServiceStub(channel),
            **fakes,
            members=members,
        )

    return start


@pytest.fixture
async def mesh(one_settings: Settings, start_mesh: Callable[..., Awaitable[Mesh]]) -> Mesh:
    """A mesh on SQLite with the users ada and bob, for what touches no tables of the gateway."""
    return await start_mesh(one_settings, users=("ada", "bob"))


@pytest.fixture
async def stored_mesh(settings: Settings, start_mesh: Callable[..., Awaitable[Mesh]]) -> Mesh:
    """A mesh on SQLite and on PostgreSQL."""
    return await start_mesh(settings)
