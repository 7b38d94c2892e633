"""Users: made, listed, changed and removed by administrators; themselves they change their password only."""

from __future__ import annotations

import asyncio

import pytest
from argon2 import PasswordHasher

from llamesh.kit.clock import utc_now
from llamesh.kit.database import open_database
from llamesh.kit.errors import MeshError, name_of
from llamesh.kit.pages import Pages
from llamesh.v1 import gateway_pb2
from services.gateway.passwords import Passwords
from services.gateway.standings import Standings
from services.gateway.users import UserChange, Users
from tests.contract.rich_status import read_refusal, refused

PASSWORD = "correct horse"
CHEAP = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


@pytest.fixture
def root(as_caller):
    return as_caller("admin", "admin")


async def create(mesh, root, username: str, role: int = gateway_pb2.ROLE_USER) -> gateway_pb2.User:
    request = gateway_pb2.CreateUserRequest(username=username, password=PASSWORD, role=role)
    return await mesh.gateway.CreateUser(request, metadata=root)


async def test_a_user_is_made_read_and_removed(stored_mesh, root) -> None:
    gateway = stored_mesh.gateway
    made = await gateway.CreateUser(
        gateway_pb2.CreateUserRequest(username="ada", password=PASSWORD, contract_id="ctr_1"), metadata=root
    )
    assert (made.username, made.role, made.contract_id) == ("ada", gateway_pb2.ROLE_USER, "ctr_1")
    assert made.create_time == made.update_time
    assert made.create_time.seconds > 0
    assert await gateway.GetUser(gateway_pb2.GetUserRequest(username="ada"), metadata=root) == made
    with refused("USER_EXISTS") as refusal:
        await create(stored_mesh, root, "ada")
    assert refusal.metadata == {"username": "ada"}
    assert await gateway.DeleteUser(gateway_pb2.DeleteUserRequest(username="ada"), metadata=root) == made
    for call, request in (
        (gateway.GetUser, gateway_pb2.GetUserRequest(username="ada")),
        (gateway.DeleteUser, gateway_pb2.DeleteUserRequest(username="ada")),
        (gateway.UpdateUser, gateway_pb2.UpdateUserRequest(username="ada", contract_id="")),
    ):
        with refused("USER_NOT_FOUND"):
            await call(request, metadata=root)


async def test_lists_come_in_pages_by_name(stored_mesh, root) -> None:
    await asyncio.gather(*(create(stored_mesh, root, f"user{number}") for number in range(5)))
    names: list[str] = []
    token, pages = "", 0
    while True:
        page = await stored_mesh.gateway.ListUsers(
            gateway_pb2.ListUsersRequest(page_size=2, page_token=token), metadata=root
        )
        names += [user.username for user in page.users]
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert (names, pages) == (["admin", "user0", "user1", "user2", "user3", "user4"], 3)


async def test_a_contract_must_exist(mesh, root) -> None:
    with refused("CONTRACT_NOT_FOUND"):
        await mesh.gateway.CreateUser(
            gateway_pb2.CreateUserRequest(username="ada", password=PASSWORD, contract_id="ctr_9"), metadata=root
        )
    with refused("CONTRACT_NOT_FOUND"):
        await mesh.gateway.UpdateUser(
            gateway_pb2.UpdateUserRequest(username="admin", contract_id="ctr_9"), metadata=root
        )


async def test_users_change_their_own_password_with_the_old_one(stored_mesh, root, as_caller) -> None:
    await create(stored_mesh, root, "ada")
    own = as_caller("ada", "manage")
    change = gateway_pb2.UpdateUserRequest(username="ada", password="a new password", old_password="wrong one")
    with refused("WRONG_CREDENTIALS"):
        await stored_mesh.gateway.UpdateUser(change, metadata=own)
    change.old_password = PASSWORD
    await stored_mesh.gateway.UpdateUser(change, metadata=own)
    request = gateway_pb2.CreateTokenRequest(username="ada", password="a new password")
    assert (await stored_mesh.gateway.CreateToken(request)).access_token


async def test_of_changes_with_the_same_old_password_one_is_made(stored_mesh, root, as_caller) -> None:
    await create(stored_mesh, root, "ada")
    changes = [
        gateway_pb2.UpdateUserRequest(username="ada", password=f"new password {number}", old_password=PASSWORD)
        for number in range(4)
    ]
    own = as_caller("ada", "manage")
    answers = await asyncio.gather(
        *(stored_mesh.gateway.UpdateUser(change, metadata=own) for change in changes), return_exceptions=True
    )
    refusals = [read_refusal(answer).reason for answer in answers if isinstance(answer, Exception)]
    assert refusals == ["WRONG_CREDENTIALS"] * 3


@pytest.mark.parametrize(
    "change",
    [
        gateway_pb2.UpdateUserRequest(username="ada", role=gateway_pb2.ROLE_ADMIN, old_password=PASSWORD),
        gateway_pb2.UpdateUserRequest(username="ada", contract_id="", old_password=PASSWORD),
        gateway_pb2.UpdateUserRequest(username="admin", password="taken over", old_password=PASSWORD),
        gateway_pb2.UpdateUserRequest(username="nobody", password="taken over", old_password=PASSWORD),
    ],
)
async def test_users_change_nothing_else(mesh, as_caller, change) -> None:
    with refused("SCOPE_MISSING"):
        await mesh.gateway.UpdateUser(change, metadata=as_caller("ada", "manage"))


async def test_the_last_administrator_stays(stored_mesh, root) -> None:
    for call, request in (
        (stored_mesh.gateway.DeleteUser, gateway_pb2.DeleteUserRequest(username="admin")),
        (
            stored_mesh.gateway.UpdateUser,
            gateway_pb2.UpdateUserRequest(username="admin", role=gateway_pb2.ROLE_USER),
        ),
    ):
        with refused("LAST_ADMINISTRATOR"):
            await call(request, metadata=root)
    await create(stored_mesh, root, "ada", gateway_pb2.ROLE_ADMIN)
    await stored_mesh.gateway.DeleteUser(gateway_pb2.DeleteUserRequest(username="admin"), metadata=root)


@pytest.mark.parametrize("change", [None, UserChange(role=gateway_pb2.ROLE_USER), UserChange(disabled=True)])
async def test_one_of_many_administrators_who_remove_each_other_stays(settings, change) -> None:
    """Below the calls: a caller who has just been removed may call nothing more."""
    database = open_database(settings, "gateway")
    await database.migrate("services.gateway")
    standings = Standings(database, utc_now)
    users = Users(database, Passwords(CHEAP), standings, Pages(b"secret"))
    names = [f"root{number}" for number in range(5)]
    for name in names:
        await users.create(name, "correct horse", gateway_pb2.ROLE_ADMIN, "")

    async def end(name: str) -> str:
        try:
            await (users.change(name, change) if change else users.delete(name))
        except MeshError as error:
            return name_of(error.reason)
        return ""

    assert sorted(await asyncio.gather(*map(end, names))) == [*[""] * 4, "LAST_ADMINISTRATOR"]
    left, _ = await users.page(gateway_pb2.ListUsersRequest())
    assert sum(user.role == gateway_pb2.ROLE_ADMIN and not user.disabled for user in left) == 1
    await database.close()


@pytest.mark.parametrize("username", ["a\0b", "\0", "x" * 64, "ä ö", "'; DROP TABLE users; --"])
async def test_odd_names_are_refused_or_not_found_never_a_fault(stored_mesh, root, username) -> None:
    with pytest.raises(Exception) as caught:
        await stored_mesh.gateway.GetUser(gateway_pb2.GetUserRequest(username=username), metadata=root)
    assert read_refusal(caught.value).reason in ("USER_NOT_FOUND", "INVALID_FIELD")
