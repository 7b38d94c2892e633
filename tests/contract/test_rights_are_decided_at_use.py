"""Who may call what, decided by what is told about users now: over a real channel, with a fake of the gateway that tells it."""

from __future__ import annotations

import asyncio
import time

import pytest

from llamesh.kit import rights
from llamesh.v1 import contract_pb2
from tests.contract.contract_mesh import contract_mesh, failure  # noqa: F401 - a fixture
from tests.contract.patience import PATIENCE
from tests.contract.test_contract_answers_envoy import NOON, Envoy, entry, until_used, usage
from tests.contract.test_contract_limits_its_holders import create_contract, create_key, told


def list_keys(mesh, metadata):
    return mesh.contract.ListKeys(contract_pb2.ListKeysRequest(), metadata=metadata)


async def test_a_later_user_of_the_same_name_inherits_nothing(mesh, as_caller) -> None:
    before = as_caller("ada", "manage", "infer:*", uid="usr_ada")
    key = (await create_key(mesh, before)).key
    mesh.standings.remove("ada")
    mesh.standings.put("ada", uid="usr_ada2", create_time={"seconds": int(time.time())})
    await told(mesh)
    after = as_caller("ada", "manage", "infer:*", uid="usr_ada2")
    assert (await failure(list_keys(mesh, before)))[0] == "UNAUTHENTICATED"
    assert not (await list_keys(mesh, after)).keys
    revoke = contract_pb2.RevokeKeyRequest(key_id=key.key_id)
    assert (await failure(mesh.contract.RevokeKey(revoke, metadata=after)))[0] == "KEY_NOT_FOUND"
    # Administrators see whose it was, and end it.
    mesh.standings.put("root", role=3)
    assert [item.key_id for item in (await list_keys(mesh, as_caller("root", "admin"))).keys] == [key.key_id]


async def test_a_token_from_before_users_had_ids_is_of_whoever_has_the_name_if_it_is_not_older(mesh, as_caller) -> None:
    now = int(time.time())
    mesh.standings.put("ada", create_time={"seconds": now - 100})
    await told(mesh)
    await list_keys(mesh, as_caller("ada", "manage", iat=now - 100))
    assert (await failure(list_keys(mesh, as_caller("ada", "manage", iat=now - 101))))[0] == "UNAUTHENTICATED"


async def test_a_user_who_was_made_a_moment_ago_is_waited_for(mesh, as_caller, monkeypatch) -> None:
    """Another gateway on the same database may have made it."""
    monkeypatch.setattr(rights, "NEW_SECONDS", 10 * PATIENCE)
    monkeypatch.setattr(rights, "NEW_PATIENCE", 10 * PATIENCE)
    new = as_caller("new", "manage", uid="usr_new")
    call = asyncio.ensure_future(list_keys(mesh, new))
    await asyncio.sleep(0.1)
    assert not call.done()
    mesh.standings.put("new")
    await asyncio.wait_for(call, PATIENCE)
    old = as_caller("gone", "manage", uid="usr_gone", iat=int(time.time() - 20 * PATIENCE))
    async with asyncio.timeout(PATIENCE):
        assert (await failure(list_keys(mesh, old)))[0] == "UNAUTHENTICATED"


async def test_a_user_who_was_removed_a_moment_ago_is_not_waited_for(mesh, as_caller, monkeypatch) -> None:
    monkeypatch.setattr(rights, "NEW_SECONDS", 10 * PATIENCE)
    monkeypatch.setattr(rights, "NEW_PATIENCE", 10 * PATIENCE)
    young = as_caller("ada", "manage", uid="usr_ada")
    await list_keys(mesh, young)
    mesh.standings.remove("ada")
    await told(mesh)
    async with asyncio.timeout(PATIENCE):
        assert (await failure(list_keys(mesh, young)))[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("changed", "reason"), [({"disabled": True}, "USER_DISABLED"), ({"role": 1}, "SCOPE_MISSING"), ({}, None)]
)
async def test_the_present_rights_of_a_user_count(mesh, as_caller, changed, reason) -> None:
    mesh.standings.put("ada", **changed)
    await told(mesh)
    for jti in ("login", "key_1"):
        call = list_keys(mesh, as_caller("ada", "manage", uid="usr_ada", jti=jti))
        if reason:
            assert (await failure(call))[0] == reason
        else:
            await call


@pytest.mark.parametrize(("jti", "standing", "counts"), [("login", 1, False), ("login", 2, True), ("key_1", 1, True)])
async def test_a_new_password_ends_earlier_logins_at_envoy_and_here(mesh, as_caller, jti, standing, counts) -> None:
    mesh.standings.put("ada", password_standing=2)
    await told(mesh)
    claims = {"uid": "usr_ada", "jti": jti, "standing": standing}
    asked = await Envoy(mesh.channel).ask(sub="ada", **claims)
    assert asked.HasField("denied_response") != counts
    call = list_keys(mesh, as_caller("ada", "manage", **claims))
    if counts:
        await call
    else:
        assert (await failure(call))[0] == "UNAUTHENTICATED"


async def test_a_contract_is_kept_while_a_user_has_it_and_freed_by_keys_without_an_owner(mesh, as_caller) -> None:
    root = as_caller("root", "admin")
    made = await create_contract(mesh, as_caller)
    remove = contract_pb2.DeleteContractRequest(contract_id=made.contract_id)
    mesh.standings.put("ada", contract_id=made.contract_id)
    await told(mesh)
    await create_key(mesh, as_caller("ada", "manage", "infer:*"))
    in_use = {"contractId": made.contract_id, "users": "1", "keys": "1"}
    assert await failure(mesh.contract.DeleteContract(remove, metadata=root)) == ("CONTRACT_IN_USE", in_use)
    mesh.standings.remove("ada")
    await told(mesh)
    await mesh.contract.DeleteContract(remove, metadata=root)


async def test_a_contract_cannot_be_assigned_while_its_users_are_counted(mesh, as_caller) -> None:
    root = as_caller("root", "admin")
    made = await create_contract(mesh, as_caller)
    read = contract_pb2.GetContractRequest(contract_id=made.contract_id)
    given: list[str] = []

    async def give() -> None:
        """As the gateway does for a user, and a key that is made meanwhile."""
        given.append((await failure(mesh.contract.GetContract(read, metadata=root)))[0])
        await create_key(mesh, root, contract_id=made.contract_id)

    mesh.standings.before_count = give
    remove = contract_pb2.DeleteContractRequest(contract_id=made.contract_id)
    in_use = {"contractId": made.contract_id, "users": "0", "keys": "1"}
    assert await failure(mesh.contract.DeleteContract(remove, metadata=root)) == ("CONTRACT_IN_USE", in_use)
    assert given == ["CONTRACT_NOT_FOUND"]
    # The removal was refused, so the contract is there again.
    mesh.standings.before_count = None
    await mesh.contract.GetContract(read, metadata=root)


async def test_of_two_deletions_of_one_contract_at_the_same_time_one_succeeds(mesh, as_caller, until) -> None:
    root = as_caller("root", "admin")
    made = await create_contract(mesh, as_caller)
    counting: list[asyncio.Event] = []

    async def wait() -> None:
        counting.append(asyncio.Event())
        await counting[-1].wait()

    mesh.standings.before_count = wait
    remove = contract_pb2.DeleteContractRequest(contract_id=made.contract_id)
    first = asyncio.ensure_future(failure(mesh.contract.DeleteContract(remove, metadata=root)))
    await until(lambda: len(counting) == 1)
    second = asyncio.ensure_future(mesh.contract.DeleteContract(remove, metadata=root))
    await until(lambda: len(counting) == 2)
    counting[0].set()
    assert await first == ("COMPONENT_UNAVAILABLE", {"component": "contract"})
    # The first call has ended, and the contract is still given to nobody.
    read = contract_pb2.GetContractRequest(contract_id=made.contract_id)
    assert (await failure(mesh.contract.GetContract(read, metadata=root)))[0] == "CONTRACT_NOT_FOUND"
    counting[1].set()
    await second
    mesh.standings.before_count = None
    assert (await failure(mesh.contract.DeleteContract(remove, metadata=root)))[0] == "CONTRACT_NOT_FOUND"


async def test_a_key_is_not_made_for_a_contract_that_is_removed_meanwhile(mesh, as_caller) -> None:
    root = as_caller("root", "admin")
    made = await create_contract(mesh, as_caller)

    async def remove() -> None:
        mesh.signer.during = None
        request = contract_pb2.DeleteContractRequest(contract_id=made.contract_id)
        await mesh.contract.DeleteContract(request, metadata=root)

    mesh.signer.during = remove
    assert (await failure(create_key(mesh, root, contract_id=made.contract_id)))[0] == "CONTRACT_NOT_FOUND"
    assert not (await list_keys(mesh, root)).keys


async def test_usage_is_a_users_and_not_a_names(mesh, as_caller) -> None:
    """Of the same name, on the same day."""
    envoy = Envoy(mesh.channel)
    await envoy.stream("counted").report(
        entry(claims={"sub": "ada", "uid": "usr_ada"}), entry(claims={"sub": "ada", "uid": "usr_ada2"})
    )
    await until_used(mesh, as_caller, 2)
    mesh.standings.remove("ada")
    mesh.standings.put("ada", uid="usr_ada2", create_time={"seconds": NOON - 60})
    await told(mesh)
    (row,) = await usage(mesh, as_caller("ada", "manage", uid="usr_ada2"))
    assert (row.subject, row.user_uid, row.requests) == ("ada", "usr_ada2", 1)
    rows = await usage(mesh, as_caller("root", "admin"), subject="ada")
    assert [(row.subject, row.user_uid, row.requests) for row in rows] == [
        ("ada", "usr_ada", 1),
        ("ada", "usr_ada2", 1),
    ]


async def test_a_list_of_keys_says_which_work(mesh, as_caller) -> None:
    root, ada = as_caller("root", "admin"), as_caller("ada", "manage", "infer:*", uid="usr_ada")
    works, revoked = [(await create_key(mesh, ada)).key for _ in range(2)]
    of_bob = (await create_key(mesh, as_caller("bob", "manage", "infer:*"))).key
    assert works.state == contract_pb2.KEY_STATE_WORKS
    ended = await mesh.contract.RevokeKey(contract_pb2.RevokeKeyRequest(key_id=revoked.key_id), metadata=ada)
    assert ended.state == contract_pb2.KEY_STATE_REVOKED

    async def states() -> dict[str, str]:
        await told(mesh)
        listed = (await list_keys(mesh, root)).keys
        return {key.key_id: contract_pb2.KeyState.Name(key.state).removeprefix("KEY_STATE_") for key in listed}

    mesh.standings.put("bob", disabled=True)
    expected = {works.key_id: "WORKS", revoked.key_id: "REVOKED", of_bob.key_id: "OWNER_DISABLED"}
    assert await states() == expected
    mesh.standings.put("bob", disabled=False)
    mesh.standings.remove("ada")
    mesh.standings.put("ada", uid="usr_ada2", create_time={"seconds": int(time.time())})
    assert await states() == expected | {works.key_id: "OWNER_REMOVED", of_bob.key_id: "WORKS"}
