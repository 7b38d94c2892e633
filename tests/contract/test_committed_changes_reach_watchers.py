"""A change that was committed is told although its caller has left: nobody else looks for it on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import pytest
from argon2 import PasswordHasher
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.clock import utc_now
from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.pages import Pages
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from services.contract.keys import Keys
from services.contract.revocations import Revocations
from services.contract.tables import KeyRow
from services.gateway.passwords import Passwords
from services.gateway.standings import Standings
from services.gateway.users import UserChange, Users

Until = Callable[[Callable[[], object]], Awaitable[None]]


@asynccontextmanager
async def database_of(settings: Settings, service: str) -> AsyncIterator[Database]:
    database = open_database(settings, service)
    await database.migrate(f"services.{service}")
    yield database
    await database.close()


@pytest.fixture(params=[asyncio.CancelledError(), MeshError(Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "no answer")])
def broken_off(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Database], BaseException]:
    """From the call on, every transaction is committed, and then its caller is told of the error, which is returned."""

    def break_off(database: Database) -> BaseException:
        begin = database.begin

        @asynccontextmanager
        async def committed() -> AsyncIterator[AsyncSession]:
            async with begin() as session:
                yield session
            raise request.param

        monkeypatch.setattr(database, "begin", committed)
        return request.param  # type: ignore[no-any-return]

    return break_off


@pytest.mark.parametrize("what", ["delete", "demote"])
async def test_a_committed_change_of_a_user_reaches_its_watchers(
    one_settings: Settings, broken_off: Callable[[Database], BaseException], until: Until, what: str
) -> None:
    async with database_of(one_settings, "gateway") as database:
        standings = Standings(database, utc_now)
        passwords = Passwords(PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1))
        ids = iter(["usr_1", "usr_2"])
        users = Users(database, passwords, standings, Pages(b"secret"), new_id=ids.__next__)
        for name in ("root", "ada"):
            await users.create(name, "correct horse", gateway_pb2.ROLE_ADMIN, "")
        told: dict[str, gateway_pb2.Standing] = {}

        async def follow() -> None:
            async for message in standings.watch():
                told.update({user.uid: user for user in message.users})

        following = asyncio.create_task(follow())
        await until(lambda: "usr_2" in told)
        error = broken_off(database)
        with pytest.raises(type(error)):
            await (
                users.delete("ada") if what == "delete" else users.change("ada", UserChange(role=gateway_pb2.ROLE_USER))
            )
        await until(lambda: told["usr_2"].deleted or told["usr_2"].role == gateway_pb2.ROLE_USER)
        following.cancel()


async def test_a_revoked_key_reaches_the_watchers(
    one_settings: Settings, broken_off: Callable[[Database], BaseException], until: Until
) -> None:
    async with database_of(one_settings, "contract") as database:
        revocations = Revocations(database, utc_now, resync_seconds=None)
        keys = Keys(database, Mock(), revocations, Mock(), Mock(), utc_now, Mock())
        now = utc_now()
        row = KeyRow(
            key_id="key_1",
            display_name="k",
            owner="ada",
            owner_uid="usr_1",
            contract_id="",
            scopes=["infer:*"],
            create_time=now,
            expire_time=now + timedelta(days=1),
            revoke_time=None,
        )
        async with database.begin() as session:
            session.add(row)
        told: list[str] = []
        synced = asyncio.Event()

        async def follow() -> None:
            async for ids in revocations.watch():
                told.extend(ids)
                synced.set()

        following = asyncio.create_task(follow())
        await synced.wait()
        error = broken_off(database)
        with pytest.raises(type(error)):
            await keys.revoke(None, "key_1")
        await until(lambda: told == ["key_1"])
        following.cancel()


class Slow(gateway_pb2_grpc.GatewayServiceServicer):
    """A FAKE of the gateway: calls that go on when they are told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.ended: list[str] = []

    async def DeleteUser(self, request: gateway_pb2.DeleteUserRequest, context: object) -> gateway_pb2.User:
        return await self._work("DeleteUser")

    async def GetUser(self, request: gateway_pb2.GetUserRequest, context: object) -> gateway_pb2.User:
        return await self._work("GetUser")

    async def _work(self, name: str) -> gateway_pb2.User:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended.append(f"{name} was stopped")
            raise
        self.ended.append(f"{name} was finished")
        return gateway_pb2.User()


@pytest.mark.parametrize(
    ("call", "end"), [("DeleteUser", "DeleteUser was finished"), ("GetUser", "GetUser was stopped")]
)
async def test_a_call_that_changes_something_is_finished_though_its_caller_has_left(
    one_settings: Settings, start_member: Any, connect: Any, as_caller: Any, until: Until, call: str, end: str
) -> None:
    servicer = Slow()
    await start_member(
        one_settings,
        "gateway",
        lambda member: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(servicer, member.server),
    )
    stub = gateway_pb2_grpc.GatewayServiceStub(connect(one_settings, "gateway"))
    request = getattr(gateway_pb2, f"{call}Request")(username="ada")
    asked = getattr(stub, call)(request, metadata=as_caller("admin", "admin"))
    await servicer.begun.wait()
    asked.cancel()
    if end.endswith("stopped"):
        await until(lambda: bool(servicer.ended))
    await asyncio.sleep(0.1)
    servicer.go_on.set()
    await until(lambda: bool(servicer.ended))
    assert servicer.ended == [end]
