"""Contracts, keys and grants over a real channel: what a token carries, who may make which, and how a key ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import grpc

from llamesh.v1 import admission_pb2, contract_pb2
from llamesh.v1.gateway_pb2 import Role
from tests.contract.contract_mesh import contract_mesh, failure  # noqa: F401 - a fixture
from tests.contract.patience import PATIENCE


async def create_contract(mesh, as_caller, **fields):
    request = contract_pb2.CreateContractRequest(**{"display_name": "team", **fields})
    return await mesh.contract.CreateContract(request, metadata=as_caller("root", "admin"))


async def create_key(mesh, metadata, **fields):
    request = contract_pb2.CreateKeyRequest(**{"display_name": "ci", **fields})
    return await mesh.contract.CreateKey(request, metadata=metadata)


async def told(mesh) -> None:
    """Wait until the contract service knows the standings as they are now."""
    wanted = {(user.uid, user.standing) for user in mesh.standings.users.values()}
    async with asyncio.timeout(PATIENCE):
        while {(user.uid, user.standing) for user in mesh.rights.users} != wanted:
            await asyncio.sleep(0.005)


async def test_a_contract_is_made_read_changed_and_removed(mesh, as_caller) -> None:
    root = as_caller("root", "admin")
    made = await create_contract(mesh, as_caller, max_concurrent_requests=2, models=["a", "b", "a"])
    assert made.contract_id.startswith("ctr_")
    assert list(made.models) == ["a", "b"]
    read = await mesh.contract.GetContract(contract_pb2.GetContractRequest(contract_id=made.contract_id), metadata=root)
    assert read == made
    change = contract_pb2.UpdateContractRequest(contract_id=made.contract_id, max_concurrent_requests=0)
    changed = await mesh.contract.UpdateContract(change, metadata=root)
    assert (changed.max_concurrent_requests, changed.display_name, list(changed.models)) == (0, "team", ["a", "b"])
    assert changed.update_time.ToDatetime() > made.update_time.ToDatetime()
    assert changed.create_time == made.create_time
    gone = contract_pb2.DeleteContractRequest(contract_id=made.contract_id)
    assert (await mesh.contract.DeleteContract(gone, metadata=root)).contract_id == made.contract_id
    missing = ("CONTRACT_NOT_FOUND", {"contractId": made.contract_id})
    assert await failure(mesh.contract.DeleteContract(gone, metadata=root)) == missing
    assert await failure(mesh.contract.UpdateContract(change, metadata=root)) == missing


async def test_no_models_or_a_star_among_them_means_all(mesh, as_caller) -> None:
    assert list((await create_contract(mesh, as_caller)).models) == ["*"]
    assert list((await create_contract(mesh, as_caller, models=["a", "*"])).models) == ["*"]


async def test_contracts_are_walked_in_the_order_they_were_made(mesh, as_caller) -> None:
    made = [(await create_contract(mesh, as_caller)).contract_id for _ in range(5)]
    seen, token = [], ""
    while not seen or token:
        request = contract_pb2.ListContractsRequest(page_size=2, page_token=token)
        page = await mesh.contract.ListContracts(request, metadata=as_caller("root", "admin"))
        assert len(page.contracts) <= 2
        seen += [item.contract_id for item in page.contracts]
        token = page.next_page_token
    assert seen == made


async def test_others_than_administrators_see_the_contract_that_they_have(mesh, as_caller) -> None:
    """`llamesh keys create --contract NAME` and manifests of keys name contracts, also those of users."""
    made = [await create_contract(mesh, as_caller) for _ in range(3)]
    mesh.standings.put("ada", contract_id=made[1].contract_id)
    mesh.standings.put("ben")
    await told(mesh)

    async def seen(user: str, *scopes: str) -> list[str]:
        request = contract_pb2.ListContractsRequest()
        listed = await mesh.contract.ListContracts(request, metadata=as_caller(user, *scopes))
        return [item.contract_id for item in listed.contracts]

    assert await seen("ada", "manage") == [made[1].contract_id]
    assert await seen("ben", "manage") == []
    assert await seen("root", "admin") == [item.contract_id for item in made]
    request = contract_pb2.ListContractsRequest()
    answer = await failure(mesh.contract.ListContracts(request, metadata=as_caller("ada", "infer:*")))
    assert answer == ("SCOPE_MISSING", {"scope": "manage"})


async def test_contracts_are_the_administrators_business(mesh, as_caller) -> None:
    request = contract_pb2.CreateContractRequest(display_name="mine")
    answer = await failure(mesh.contract.CreateContract(request, metadata=as_caller("ada", "manage")))
    assert answer == ("SCOPE_MISSING", {"scope": "admin"})


async def test_a_grant_follows_role_and_contract_and_never_locks_out_admins(mesh, as_caller) -> None:
    made = await create_contract(mesh, as_caller, max_concurrent_requests=2, models=["a"])

    async def grant(**fields):
        return await mesh.admission.Grant(admission_pb2.GrantRequest(**fields))

    plain = await grant(role=Role.ROLE_USER)
    assert (list(plain.scopes), plain.contract_id) == (["infer:*", "manage"], "")
    bound = await grant(role=Role.ROLE_ADMIN, contract_id=made.contract_id)
    assert list(bound.scopes) == ["infer:a", "manage", "metrics", "admin"]
    assert bound.contract_id == made.contract_id
    # A user whose contract is gone must not become one without limits, nor one who cannot mend it.
    lost = await grant(role=Role.ROLE_ADMIN, contract_id="ctr_gone")
    assert (list(lost.scopes), lost.contract_id) == (["manage", "metrics", "admin"], "ctr_gone")


async def test_a_key_is_signed_with_the_granted_scopes_and_shown_once(mesh, as_caller) -> None:
    made = await create_contract(mesh, as_caller, max_concurrent_requests=1, models=["a"])
    mesh.standings.put("ada", contract_id=made.contract_id)
    await told(mesh)
    ada = as_caller("ada", "infer:a", "manage")
    answer = await create_key(mesh, ada)
    (signed,) = mesh.signer.signed
    assert answer.token == f"signed.{answer.key.key_id}.x"
    assert (signed.subject, signed.token_id, list(signed.scopes)) == ("ada", answer.key.key_id, ["infer:a"])
    assert (signed.contract_id, signed.uid, signed.lifetime_seconds) == (made.contract_id, "usr_ada", 90 * 86400)
    life = answer.key.expire_time.ToDatetime() - answer.key.create_time.ToDatetime()
    assert life == timedelta(days=90)
    (listed,) = (await mesh.contract.ListKeys(contract_pb2.ListKeysRequest(), metadata=ada)).keys
    assert listed == answer.key
    assert not listed.HasField("revoke_time")


async def test_a_key_never_carries_more_than_its_maker_may(mesh, as_caller) -> None:
    made = await create_contract(mesh, as_caller)
    narrow = as_caller("ada", "infer:a", "manage")
    assert await failure(create_key(mesh, narrow, scopes=["infer:*"])) == ("SCOPE_MISSING", {"scope": "infer:*"})
    assert await failure(create_key(mesh, narrow, scopes=["infer:b"])) == ("SCOPE_MISSING", {"scope": "infer:b"})
    foreign = await failure(create_key(mesh, narrow, contract_id=made.contract_id))
    assert foreign == ("SCOPE_MISSING", {"scope": "admin"})
    assert (await failure(create_key(mesh, narrow, scopes=["admin"])))[0] == "INVALID_FIELD"
    assert (await failure(create_key(mesh, as_caller("ada", "infer:*"))))[0] == "SCOPE_MISSING"
    mesh.standings.put("bob", contract_id="ctr_gone")
    await told(mesh)
    assert (await failure(create_key(mesh, as_caller("bob", "infer:*", "manage"))))[0] == "CONTRACT_NOT_FOUND"
    assert not mesh.signer.signed
    root = await create_key(mesh, as_caller("root", "admin"), contract_id=made.contract_id, scopes=["manage"])
    assert (root.key.contract_id, list(root.key.scopes)) == (made.contract_id, ["manage"])


async def test_callers_see_and_revoke_their_own_keys_and_administrators_all(mesh, as_caller) -> None:
    ada, bob = as_caller("ada", "infer:*", "manage"), as_caller("bob", "infer:*", "manage")
    root = as_caller("root", "admin")
    first = (await create_key(mesh, ada)).key
    second = (await create_key(mesh, bob)).key

    async def listed(metadata):
        return [
            item.key_id
            for item in (await mesh.contract.ListKeys(contract_pb2.ListKeysRequest(), metadata=metadata)).keys
        ]

    assert await listed(ada) == [first.key_id]
    assert await listed(root) == [first.key_id, second.key_id]
    revoke = contract_pb2.RevokeKeyRequest(key_id=first.key_id)
    assert await failure(mesh.contract.RevokeKey(revoke, metadata=bob)) == (
        "KEY_NOT_FOUND",
        {"keyId": first.key_id},
    )
    ended = await mesh.contract.RevokeKey(revoke, metadata=ada)
    assert ended.HasField("revoke_time")
    assert await mesh.contract.RevokeKey(revoke, metadata=root) == ended


async def test_a_contract_is_kept_while_a_key_that_works_carries_it(mesh, as_caller) -> None:
    root = as_caller("root", "admin")
    made = await create_contract(mesh, as_caller)
    key = (await create_key(mesh, root, contract_id=made.contract_id)).key
    remove = contract_pb2.DeleteContractRequest(contract_id=made.contract_id)
    assert (await failure(mesh.contract.DeleteContract(remove, metadata=root)))[0] == "CONTRACT_IN_USE"
    await mesh.contract.RevokeKey(contract_pb2.RevokeKeyRequest(key_id=key.key_id), metadata=root)
    await mesh.contract.DeleteContract(remove, metadata=root)


async def test_revocations_come_first_as_they_are_then_each_at_once(mesh, as_caller) -> None:
    ada = as_caller("ada", "infer:*", "manage")
    keys = [(await create_key(mesh, ada)).key.key_id for _ in range(3)]

    async def revoke(key_id):
        await mesh.contract.RevokeKey(contract_pb2.RevokeKeyRequest(key_id=key_id), metadata=ada)

    await revoke(keys[0])
    watches = [mesh.admission.WatchRevocations(admission_pb2.WatchRevocationsRequest()) for _ in range(2)]
    for watch in watches:
        first, synced = await watch.read(), await watch.read()
        assert (list(first.key_ids), first.synced) == ([keys[0]], False)
        assert (list(synced.key_ids), synced.synced) == ([], True)
    await revoke(keys[2])
    for watch in watches:
        assert list((await asyncio.wait_for(watch.read(), PATIENCE)).key_ids) == [keys[2]]
    await revoke(keys[1])
    for watch in watches:
        assert list((await asyncio.wait_for(watch.read(), PATIENCE)).key_ids) == [keys[1]]
        watch.cancel()


async def test_a_revoked_key_manages_nothing_more(mesh, as_caller) -> None:
    ada = as_caller("ada", "infer:*", "manage")
    key_id = (await create_key(mesh, ada)).key.key_id
    program = as_caller("ada", "infer:*", "manage", jti=key_id)
    await mesh.contract.ListKeys(contract_pb2.ListKeysRequest(), metadata=program)
    await mesh.contract.RevokeKey(contract_pb2.RevokeKeyRequest(key_id=key_id), metadata=program)
    refused = None
    async with asyncio.timeout(PATIENCE):
        while not refused:
            answered = mesh.contract.ListKeys(contract_pb2.ListKeysRequest(), metadata=program)
            refused = await answered.code() is grpc.StatusCode.UNAUTHENTICATED
    await mesh.contract.ListKeys(contract_pb2.ListKeysRequest(), metadata=ada)


async def test_a_key_that_is_not_signed_is_not_recorded(mesh, as_caller) -> None:
    mesh.signer.fails = True
    ada = as_caller("ada", "infer:*", "manage")
    assert (await failure(create_key(mesh, ada)))[0] == "INTERNAL"
    assert not (await mesh.contract.ListKeys(contract_pb2.ListKeysRequest(), metadata=ada)).keys
