"""A key that was made with a key ends with it: at its expiry at the latest, and with its revocation."""

from __future__ import annotations

import time

from llamesh.v1 import contract_pb2
from tests.contract.contract_mesh import contract_mesh, failure  # noqa: F401 - a fixture
from tests.contract.test_contract_limits_its_holders import create_key
from tests.contract.test_rights_are_decided_at_use import list_keys

DAY = 24 * 3600
REVOKED, WORKS = contract_pb2.KEY_STATE_REVOKED, contract_pb2.KEY_STATE_WORKS


def by_key(as_caller, key: contract_pb2.Key, expires: float | None = None):
    """The caller that uses a key with all scopes."""
    end = key.expire_time.seconds if expires is None else int(expires)
    return as_caller("ada", "manage", "infer:*", jti=key.key_id, exp=end)


def revoke(mesh, metadata, key_id: str):
    return mesh.contract.RevokeKey(contract_pb2.RevokeKeyRequest(key_id=key_id), metadata=metadata)


async def states(mesh, metadata) -> dict[str, contract_pb2.KeyState.ValueType]:
    return {key.key_id: key.state for key in (await list_keys(mesh, metadata)).keys}


async def test_a_key_without_days_ends_with_the_key_that_made_it(mesh, as_caller) -> None:
    login = as_caller("ada", "manage", "infer:*", exp=int(time.time()) + 3600)
    maker = (await create_key(mesh, login, expire_days=3)).key
    made = (await create_key(mesh, by_key(as_caller, maker))).key
    assert maker.expire_time.seconds - 1 <= made.expire_time.seconds <= maker.expire_time.seconds
    assert mesh.signer.signed[-1].lifetime_seconds <= 3 * DAY


async def test_a_key_that_would_outlive_its_maker_is_refused_and_the_most_days_are_named(mesh, as_caller) -> None:
    login = as_caller("ada", "manage", "infer:*")
    maker = (await create_key(mesh, login, expire_days=3)).key
    caller = by_key(as_caller, maker)
    refused = contract_pb2.CreateKeyRequest(display_name="long", expire_days=3650)
    assert await failure(mesh.contract.CreateKey(refused, metadata=caller)) == (
        "INVALID_FIELD",
        {"fields": "expire_days"},
    )
    assert (await create_key(mesh, caller, expire_days=1)).key.expire_time.seconds < maker.expire_time.seconds
    assert (await create_key(mesh, caller, expire_days=3)).key.expire_time.seconds <= maker.expire_time.seconds


async def test_the_last_day_of_a_key_still_makes_a_key_of_one_day_that_ends_with_it(mesh, as_caller) -> None:
    """As `llamesh env` requests it."""
    login = as_caller("ada", "manage", "infer:*")
    maker = (await create_key(mesh, login, expire_days=1)).key
    soon = int(time.time()) + 3600
    made = (await create_key(mesh, by_key(as_caller, maker, soon), expire_days=1)).key
    assert made.expire_time.seconds <= soon


async def test_a_login_that_ends_soon_makes_a_key_of_any_length(mesh, as_caller) -> None:
    login = as_caller("ada", "manage", "infer:*", jti="4f1c", exp=int(time.time()) + 60)
    made = (await create_key(mesh, login, expire_days=3650)).key
    assert made.expire_time.seconds > time.time() + 3649 * DAY


async def test_the_revocation_of_a_key_revokes_all_keys_below_it_and_no_other(mesh, as_caller, until) -> None:
    login = as_caller("ada", "manage", "infer:*")
    first, other = (await create_key(mesh, login)).key, (await create_key(mesh, login)).key
    second = (await create_key(mesh, by_key(as_caller, first))).key
    third = (await create_key(mesh, by_key(as_caller, second))).key
    beside = (await create_key(mesh, by_key(as_caller, other))).key
    await revoke(mesh, login, first.key_id)
    assert await states(mesh, login) == {
        first.key_id: REVOKED,
        second.key_id: REVOKED,
        third.key_id: REVOKED,
        other.key_id: WORKS,
        beside.key_id: WORKS,
    }
    await until(lambda: {first.key_id, second.key_id, third.key_id} <= (mesh.rights._revoked or set()))
    assert (await failure(list_keys(mesh, by_key(as_caller, third))))[0] == "UNAUTHENTICATED"


async def test_a_key_that_is_revoked_while_it_makes_a_key_makes_none(mesh, as_caller) -> None:
    login = as_caller("ada", "manage", "infer:*")
    maker = (await create_key(mesh, login)).key

    async def end() -> None:
        await revoke(mesh, login, maker.key_id)

    mesh.signer.during = end
    assert (await failure(create_key(mesh, by_key(as_caller, maker))))[0] == "UNAUTHENTICATED"
    assert await states(mesh, login) == {maker.key_id: REVOKED}
