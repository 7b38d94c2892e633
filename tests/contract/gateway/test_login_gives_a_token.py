"""Logging in: what the token says, who is refused, and that guessing gets slower."""

from __future__ import annotations

import asyncio
import json
import time

import jwt
import pytest
from pydantic import SecretStr

from llamesh.kit.serving import StartRefused
from llamesh.v1 import gateway_pb2
from services.gateway.throttle import Throttle
from tests.conftest import SECRET
from tests.contract.rich_status import read_refusal, refused


def login(mesh, username: str = "admin", password: str = "admin", address: str = "192.0.2.1"):
    request = gateway_pb2.CreateTokenRequest(username=username, password=password)
    return mesh.gateway.CreateToken(request, metadata=(("x-llamesh-client-address", address),), wait_for_ready=True)


def claims_of(token: str) -> dict:
    return jwt.decode(token, SECRET, algorithms=["HS256"], audience="llamesh", issuer="llamesh")


async def test_the_first_login_is_admin_admin_on_one_machine(stored_mesh) -> None:
    before = int(time.time())
    answer = await login(stored_mesh)
    assert (answer.token_type, answer.expires_in) == ("bearer", 86400)
    claims = claims_of(answer.access_token)
    assert claims["exp"] - claims["iat"] == 86400
    assert before <= claims["iat"] <= time.time()
    assert len(claims.pop("jti")) == 36
    assert claims.pop("uid").startswith("usr_")
    assert {name: claims[name] for name in claims if name not in ("iat", "exp")} == {
        "iss": "llamesh",
        "aud": "llamesh",
        "sub": "admin",
        "name": "admin",
        "role": "admin",
        "scopes": ["admin", "manage", "infer:*"],
        "contract": "",
        "standing": 1,
    }
    assert claims_of((await login(stored_mesh)).access_token)["jti"] != claims_of(answer.access_token)["jti"]


async def test_the_contract_service_decides_the_scopes_of_a_token(stored_mesh, as_caller) -> None:
    request = gateway_pb2.CreateUserRequest(
        username="ada", password="correct horse", role=gateway_pb2.ROLE_INFERENCE, contract_id="ctr_1"
    )
    await stored_mesh.gateway.CreateUser(request, metadata=as_caller("admin", "admin"))
    claims = claims_of((await login(stored_mesh, "ada", "correct horse")).access_token)
    assert (claims["role"], claims["scopes"], claims["contract"]) == ("inference", ["infer:*"], "ctr_1")
    assert stored_mesh.contract.grants[-1].contract_id == "ctr_1"


@pytest.mark.parametrize(("username", "password"), [("admin", "wrong"), ("nobody", "admin"), ("Admin", "admin")])
async def test_wrong_credentials_say_nothing_about_which_part_is_wrong(mesh, username, password) -> None:
    with refused("WRONG_CREDENTIALS") as refusal:
        await login(mesh, username, password)
    assert refusal.message == "wrong user name or password"
    assert refusal.metadata == {}


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes between two logins of a gateway that is started from now on."""
    monkeypatch.setattr("services.gateway.service.Throttle", lambda _clock: Throttle(lambda: 1000.0))


async def test_repeated_failures_of_a_name_must_wait_and_others_do_not(still, mesh) -> None:
    for _ in range(5):
        with refused("WRONG_CREDENTIALS"):
            await login(mesh, "eve", "guess")
    with refused("TOO_MANY_LOGINS") as refusal:
        await login(mesh, "eve", "guess")
    assert 0 < refusal.retry_after <= 1
    assert refusal.metadata == {"retryAfterSeconds": "1"}
    assert (await login(mesh)).access_token


async def test_a_stranger_does_not_keep_the_administrator_out(still, mesh) -> None:
    guesses = [login(mesh, "admin", f"guess {number}", "198.51.100.7") for number in range(34)]
    answers = [read_refusal(error).reason for error in await asyncio.gather(*guesses, return_exceptions=True)]
    assert answers.count("WRONG_CREDENTIALS") == 5
    assert answers.count("TOO_MANY_LOGINS") == 29
    assert (await login(mesh)).access_token


async def test_many_right_logins_at_once_all_pass(mesh) -> None:
    answers = await asyncio.gather(*(login(mesh) for _ in range(12)))
    assert len({answer.access_token for answer in answers}) == 12


async def test_without_the_contract_service_no_token_is_issued(one_settings, start_mesh, monkeypatch) -> None:
    monkeypatch.setattr("services.gateway.issuer.GRANT_DEADLINE", 0.3)
    mesh = await start_mesh(one_settings, without=("contract",))
    with refused("COMPONENT_UNAVAILABLE") as refusal:
        await login(mesh)
    assert refusal.metadata == {"component": "contract"}


async def test_a_password_that_is_set_is_the_first_one(one_settings, start_mesh) -> None:
    settings = one_settings.model_copy(update={"admin_password": SecretStr("chosen by us"), "bind": "0.0.0.0"})
    mesh = await start_mesh(settings)
    assert (await login(mesh, "admin", "chosen by us")).access_token
    with refused("WRONG_CREDENTIALS"):
        await login(mesh)


OPENED = [
    {"bind": "0.0.0.0"},
    {"trusted_proxies": 1},
    {"allowed_hosts": ("llm.example.com",)},
    {"public_host": "llm.example.com"},
]
"""Settings each of which says that other machines reach the mesh."""


@pytest.mark.parametrize("opened", OPENED)
@pytest.mark.parametrize("password", [None, "", "admin"])
async def test_the_default_password_is_refused_if_other_machines_can_connect(
    one_settings, start_mesh, password, opened
) -> None:
    chosen = None if password is None else SecretStr(password)
    with pytest.raises(StartRefused, match="LLAMESH_ADMIN_PASSWORD"):
        await start_mesh(one_settings.model_copy(update={**opened, "admin_password": chosen}))


@pytest.mark.parametrize("opened", OPENED)
async def test_a_mesh_with_the_default_password_is_not_opened_later(
    stored_mesh, start_main, stop_member, as_caller, opened
) -> None:
    from services.gateway.service import run

    opened = stored_mesh.settings.model_copy(update=opened)
    await stop_member(stored_mesh.members["gateway"])
    with pytest.raises(StartRefused, match="llamesh users password admin"):
        await start_main(opened, "gateway", run)
    again = await start_main(stored_mesh.settings, "gateway", run)
    change = gateway_pb2.UpdateUserRequest(username="admin", password="much better", old_password="admin")
    # The channel may find out only now that the gateway was restarted.
    await stored_mesh.gateway.UpdateUser(change, metadata=as_caller("admin", "manage"), wait_for_ready=True)
    await stop_member(again)
    await start_main(opened, "gateway", run)
    assert (await login(stored_mesh, "admin", "much better")).access_token


async def test_an_empty_password_counts_as_none(one_settings, start_mesh) -> None:
    mesh = await start_mesh(one_settings.model_copy(update={"admin_password": SecretStr("")}))
    assert (await login(mesh)).access_token


async def test_a_changed_password_outlives_a_restart(stored_mesh, start_main, stop_member, as_caller) -> None:
    change = gateway_pb2.UpdateUserRequest(username="admin", password="much better", old_password="admin")
    await stored_mesh.gateway.UpdateUser(change, metadata=as_caller("admin", "manage"))
    await stop_member(stored_mesh.members["gateway"])
    from services.gateway.service import run

    await start_main(stored_mesh.settings, "gateway", run)
    assert (await login(stored_mesh, "admin", "much better")).access_token
    with refused("WRONG_CREDENTIALS"):
        await login(stored_mesh)


async def test_the_key_that_envoy_gets_verifies_the_token(mesh) -> None:
    token = (await login(mesh)).access_token
    answer = await mesh.keys.ListSigningKeys(gateway_pb2.ListSigningKeysRequest())
    keys = jwt.PyJWKSet.from_dict(json.loads(answer.jwks_json))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    assert key.key_type == "oct"
    assert jwt.decode(token, key, algorithms=["HS256"], audience="llamesh")["sub"] == "admin"
    assert answer.version


async def test_programs_get_tokens_with_their_own_id(mesh, as_caller) -> None:
    user = gateway_pb2.CreateUserRequest(username="cyn", password="correct horse", contract_id="ctr_1")
    await mesh.gateway.CreateUser(user, metadata=as_caller("admin", "admin"))
    request = gateway_pb2.SignTokenRequest(
        subject="cyn", lifetime_seconds=60, token_id="key_1", scopes=["infer:m"], contract_id="ctr_1"
    )
    claims = claims_of((await mesh.keys.SignToken(request)).token)
    assert claims["exp"] - claims["iat"] == 60
    assert {name: claims[name] for name in ("sub", "jti", "scopes", "contract", "standing")} == {
        "sub": "cyn",
        "jti": "key_1",
        "scopes": ["infer:m"],
        "contract": "ctr_1",
        "standing": 1,
    }


async def test_no_key_is_signed_for_a_user_who_was_removed_or_lost_rights(stored_mesh, as_caller) -> None:
    root = as_caller("admin", "admin")
    user = gateway_pb2.CreateUserRequest(username="eve", password="correct horse", role=gateway_pb2.ROLE_ADMIN)
    await stored_mesh.gateway.CreateUser(user, metadata=root)
    request = gateway_pb2.SignTokenRequest(subject="eve", lifetime_seconds=60, token_id="key_1", scopes=["admin"])
    request.uid = claims_of((await stored_mesh.keys.SignToken(request)).token)["uid"]

    async def refusal_after(reason: str, *scopes: str, **changed) -> None:
        await stored_mesh.gateway.UpdateUser(gateway_pb2.UpdateUserRequest(username="eve", **changed), metadata=root)
        request.scopes[:] = scopes
        with refused(reason):
            await stored_mesh.keys.SignToken(request)

    request.contract_id = "ctr_1"  # an administrator may give its keys any
    await stored_mesh.keys.SignToken(request)
    await refusal_after("SCOPE_MISSING", "manage", role=gateway_pb2.ROLE_USER)
    request.contract_id = ""
    await refusal_after("SCOPE_MISSING", "admin", role=gateway_pb2.ROLE_USER)
    await refusal_after("SCOPE_MISSING", "infer:*", "manage", role=gateway_pb2.ROLE_INFERENCE)
    await refusal_after("SCOPE_MISSING", "infer:*", contract_id="ctr_1")
    await refusal_after("USER_DISABLED", "infer:*", contract_id="", disabled=True)
    await stored_mesh.gateway.DeleteUser(gateway_pb2.DeleteUserRequest(username="eve"), metadata=root)
    with refused("USER_NOT_FOUND"):
        await stored_mesh.keys.SignToken(request)
    await stored_mesh.gateway.CreateUser(user, metadata=root)
    with refused("USER_NOT_FOUND"):
        await stored_mesh.keys.SignToken(request)


async def test_the_front_door_never_reaches_the_signing_keys(mesh, as_caller) -> None:
    metadata = [("x-forwarded-proto", "http"), *as_caller("admin", "admin")]
    with refused("UNAUTHENTICATED"):
        await mesh.keys.ListSigningKeys(gateway_pb2.ListSigningKeysRequest(), metadata=metadata)
