"""What the gateway tells of its users: everything first, then each change, and which standings have ended while tokens are out."""

from __future__ import annotations

import asyncio

import pytest

from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from services.gateway import standings
from services.gateway.service import run
from tests.contract.patience import PATIENCE
from tests.contract.rich_status import refused

PASSWORD = "correct horse"


@pytest.fixture
def root(as_caller):
    return as_caller("admin", "admin")


class Watch:
    """A stream of standings, taken in."""

    def __init__(self, channel) -> None:
        self._call = gateway_pb2_grpc.StandingServiceStub(channel).WatchStandings(gateway_pb2.WatchStandingsRequest())
        self.users: dict[str, gateway_pb2.Standing] = {}
        self.gone: list[str] = []
        self.ended: set[str] = set()

    async def take(self) -> bool:
        """Take one message; whether it is the one that ends the list."""
        message = await asyncio.wait_for(self._call.read(), PATIENCE)
        for user in message.users:
            if user.deleted:
                self.gone.append(user.uid)
                self.users = {name: each for name, each in self.users.items() if each.uid != user.uid}
            else:
                self.users[user.username] = user
        self.ended |= set(message.ended)
        return message.synced

    async def whole(self) -> Watch:
        while not await self.take():
            pass
        return self

    def close(self) -> None:
        self._call.cancel()


async def create(mesh, root, name: str, **fields) -> None:
    request = gateway_pb2.CreateUserRequest(username=name, password=PASSWORD, **fields)
    await mesh.gateway.CreateUser(request, metadata=root)


async def change(mesh, root, name: str, **fields) -> gateway_pb2.User:
    return await mesh.gateway.UpdateUser(gateway_pb2.UpdateUserRequest(username=name, **fields), metadata=root)


async def login(mesh, name: str) -> None:
    await mesh.gateway.CreateToken(gateway_pb2.CreateTokenRequest(username=name, password=PASSWORD))


async def test_each_change_of_rights_ends_a_standing_that_has_tokens(stored_mesh, root, connect) -> None:
    watch = await Watch(connect(stored_mesh.settings, "gateway")).whole()
    assert watch.users.keys() == {"admin"}
    await create(stored_mesh, root, "ada")
    await watch.take()
    ada = watch.users["ada"]
    assert (ada.role, ada.standing, ada.disabled, ada.contract_id) == (gateway_pb2.ROLE_USER, 1, False, "")
    # Without a token there is nothing to ask about; what changes nothing ends nothing.
    await change(stored_mesh, root, "ada", role=gateway_pb2.ROLE_INFERENCE)
    await watch.take()
    assert (watch.users["ada"].standing, watch.ended) == (2, set())
    await login(stored_mesh, "ada")
    await change(stored_mesh, root, "ada", role=gateway_pb2.ROLE_INFERENCE)
    await change(stored_mesh, root, "ada", disabled=True)
    await watch.take()
    assert (watch.users["ada"].standing, watch.users["ada"].disabled) == (3, True)
    assert watch.ended == {f"{ada.uid}:2"}
    await change(stored_mesh, root, "ada", disabled=False, contract_id="ctr_1")
    await watch.take()
    await login(stored_mesh, "ada")
    await stored_mesh.gateway.DeleteUser(gateway_pb2.DeleteUserRequest(username="ada"), metadata=root)
    await watch.take()
    assert (watch.gone, watch.ended) == ([ada.uid], {f"{ada.uid}:2", f"{ada.uid}:4"})
    await create(stored_mesh, root, "ada")
    await watch.take()
    assert watch.users["ada"].uid not in ("", ada.uid)
    later = await Watch(connect(stored_mesh.settings, "gateway")).whole()
    assert (later.users.keys(), later.ended) == ({"admin", "ada"}, watch.ended)
    later.close()
    watch.close()


async def test_a_new_password_ends_earlier_logins_and_no_keys(stored_mesh, root, connect) -> None:
    """Whoever has learned the earlier one is out, whether the user or an administrator sets it."""
    watch = await Watch(connect(stored_mesh.settings, "gateway")).whole()
    await create(stored_mesh, root, "ada")
    await watch.take()
    uid = watch.users["ada"].uid

    async def logged_in(password: str) -> list[tuple[str, str]]:
        request = gateway_pb2.CreateTokenRequest(username="ada", password=password)
        return [("x-llamesh-claims", (await stored_mesh.gateway.CreateToken(request)).access_token.split(".")[1])]

    async def may_ask(metadata) -> None:
        await stored_mesh.gateway.ListServers(gateway_pb2.ListServersRequest(), metadata=metadata)

    async def may_no_longer_ask(metadata) -> None:
        """The gateway hears of the change by a stream of its own, maybe later than this test does by its."""
        async with asyncio.timeout(PATIENCE):
            while True:
                await may_ask(metadata)
                await asyncio.sleep(0.01)

    first = await logged_in(PASSWORD)
    request = gateway_pb2.SignTokenRequest(subject="ada", lifetime_seconds=60, token_id="key_1", scopes=["manage"])
    key = [("x-llamesh-claims", (await stored_mesh.keys.SignToken(request)).token.split(".")[1])]
    await may_ask(first)
    await change(stored_mesh, first, "ada", old_password=PASSWORD, password="another horse")
    await watch.take()
    assert (watch.ended, watch.users["ada"].password_standing) == ({f"{uid}:1"}, 2)
    with refused("UNAUTHENTICATED") as refusal:
        await may_no_longer_ask(first)
    assert "password of ada was changed" in refusal.message
    await may_ask(key)
    second = await logged_in("another horse")
    await may_ask(second)
    await change(stored_mesh, root, "ada", password=PASSWORD)
    await watch.take()
    with refused("UNAUTHENTICATED"):
        await may_no_longer_ask(second)
    # Other changes leave logins as they are.
    third = await logged_in(PASSWORD)
    await change(stored_mesh, root, "ada", contract_id="ctr_1")
    await watch.take()
    await may_ask(third)
    await may_ask(key)
    watch.close()


async def test_a_disabled_user_cannot_log_in_and_the_last_administrator_is_none(stored_mesh, root) -> None:
    with refused("LAST_ADMINISTRATOR"):
        await change(stored_mesh, root, "admin", disabled=True)
    await create(stored_mesh, root, "ada", role=gateway_pb2.ROLE_ADMIN)
    assert (await change(stored_mesh, root, "ada", disabled=True)).disabled
    with refused("USER_DISABLED") as refusal:
        await login(stored_mesh, "ada")
    assert refusal.metadata == {"username": "ada"}
    with refused("WRONG_CREDENTIALS"):
        await stored_mesh.gateway.CreateToken(gateway_pb2.CreateTokenRequest(username="ada", password="guess"))
    # A disabled administrator is none who could enable anybody.
    for fields in ({"role": gateway_pb2.ROLE_USER}, {"disabled": True}):
        with refused("LAST_ADMINISTRATOR"):
            await change(stored_mesh, root, "admin", **fields)
    await change(stored_mesh, root, "ada", disabled=False)
    await login(stored_mesh, "ada")


async def test_users_do_not_enable_themselves(stored_mesh, root, as_caller) -> None:
    await create(stored_mesh, root, "ada")
    with refused("SCOPE_MISSING"):
        await change(stored_mesh, as_caller("ada", "manage"), "ada", disabled=False, old_password=PASSWORD)


async def test_another_gateway_on_the_same_database_tells_within_a_second(
    stored_mesh, root, start_main, connect, tmp_path
) -> None:
    if stored_mesh.settings.database_url is None:
        return  # a SQLite file belongs to one process
    assert standings.RESYNC_SECONDS <= 1
    other = stored_mesh.settings.model_copy(update={"home": tmp_path / "other"})
    await start_main(other, "gateway", run)
    watch = await Watch(connect(other, "gateway")).whole()
    await create(stored_mesh, root, "ada")
    await watch.take()
    assert "ada" in watch.users
    await change(stored_mesh, root, "ada", disabled=True)
    await watch.take()
    assert watch.users["ada"].disabled
    watch.close()


async def test_users_of_a_contract_are_counted(stored_mesh, root, connect) -> None:
    stub = gateway_pb2_grpc.StandingServiceStub(connect(stored_mesh.settings, "gateway"))
    request = gateway_pb2.CountContractUsersRequest(contract_id="ctr_1")
    assert (await stub.CountContractUsers(request)).users == 0
    for name in ("ada", "bob"):
        await create(stored_mesh, root, name, contract_id="ctr_1")
    assert (await stub.CountContractUsers(request)).users == 2
