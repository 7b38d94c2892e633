"""The inference listener: tokens, keys, scopes, and who may be anonymous."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest

from tests.mesh.front_door import A_DAY, PATIENCE, SECRET, FrontDoor, token
from tests.mesh.inference_door import CHAT, A, B, engine

pytestmark = pytest.mark.asyncio(loop_scope="module")


def unsigned(payload: dict[str, Any]) -> str:
    parts = ({"alg": "none", "typ": "JWT"}, payload)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


BAD_TOKENS = {
    "expired": token(exp=int(time.time()) - 60),
    "without expiry": token(exp=None),
    "another key": token(key=b"f" * 32),
    "another algorithm": token(key=SECRET * 2, algorithm="HS512"),
    "another audience": token(aud="other"),
    "no audience": token(aud=None),
    "another issuer": token(iss="other"),
    "not yet": token(nbf=int(time.time()) + A_DAY),
    "unsigned": unsigned(
        {"iss": "llamesh", "aud": "llamesh", "sub": "ada", "exp": int(time.time()) + A_DAY, "scopes": ["infer:*"]}
    ),
    "signature cut off": token().rpartition(".")[0] + ".",
    "one dot": "a.b",
    "nonsense": "a.b.c",
}


@pytest.mark.parametrize("why", BAD_TOKENS)
@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_bad_token_is_401_even_if_anonymous_is_allowed(inference: FrontDoor, why: str, header: str) -> None:
    value = BAD_TOKENS[why] if header == "x-api-key" else f"Bearer {BAD_TOKENS[why]}"
    answer = await inference.chat("big", headers={header: value})
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        401,
        "authentication_error",
        "invalid_api_key",
    )


async def test_words_about_a_token_are_plain(inference: FrontDoor) -> None:
    foreign = "This token was not made by this mesh, or not for it."
    for why, words in (("another key", foreign), ("another audience", foreign), ("expired", "The token has expired.")):
        answer = await inference.chat("big", headers={"authorization": f"Bearer {BAD_TOKENS[why]}"})
        assert answer.error["message"] == words


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "BeArEr", "Bearer  "])
async def test_a_good_token_passes(inference: FrontDoor, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {token()}", "origin": "http://evil.example", "host": "evil.example"}
    assert (await inference.chat("big", headers=headers)).status == 200


@pytest.mark.parametrize("other", ["Bearer not-needed", "Basic YTpi", "Bearer", "a.b.c"])
async def test_a_token_may_come_as_api_key(inference: FrontDoor, other: str) -> None:
    """Its scope counts, whatever else stands beside it."""
    for model, status in (("big", 200), ("smol", 403)):
        headers = {"x-api-key": token(scopes=["infer:big"]), "authorization": other}
        assert (await inference.chat(model, headers=headers)).status == status
    assert not {"authorization", "x-api-key"} & engine(inference, "b").received[-1].headers.keys()


async def test_a_bearer_token_counts_before_an_api_key(inference: FrontDoor) -> None:
    for model, status in (("big", 200), ("smol", 403)):
        headers = {"x-api-key": token(), "authorization": f"Bearer {token(scopes=['infer:big'])}"}
        assert (await inference.chat(model, headers=headers)).status == status
    assert not {"authorization", "x-api-key"} & engine(inference, "b").received[-1].headers.keys()


@pytest.mark.parametrize(
    "value",
    [
        *("Bearer x y.z", "Bearer a.b.c, Bearer not-needed", "Bearer sk-x .", "bearer ."),
        *("Bearer\tbad.token.x", "bearer \tbad.token.x", "Bearer,bad.token.x", "Bearer:bad.token.x", "Bearer=a.b"),
    ],
)
async def test_a_value_that_looks_like_a_token_must_be_valid(inference: FrontDoor, value: str) -> None:
    assert (await inference.chat("big", headers={"authorization": value})).status == 401


async def test_the_first_of_two_tokens_counts(inference: FrontDoor) -> None:
    first, second = f"Bearer {token(scopes=['infer:big'])}", f"Bearer {token()}"
    body = {"model": "smol"}
    given = [("authorization", first), ("authorization", second), ("content-type", "application/json")]
    assert (await inference.send("POST", CHAT, body, given)).status in (401, 403)


@pytest.mark.parametrize(
    ("scopes", "model", "path", "status"),
    [
        (["infer:big"], "big", CHAT, 200),
        (["infer:big"], "smol", CHAT, 403),
        (["infer:big"], "big", f"/{B}{CHAT}", 403),
        ([f"infer:{B}"], "x", f"/{B}{CHAT}", 200),
        ([f"infer:{B}"], "x", f"/{A}{CHAT}", 403),
        (["manage"], "big", CHAT, 403),
        (None, "big", CHAT, 403),
    ],
)
async def test_a_token_reaches_only_the_models_of_its_scopes(
    inference: FrontDoor, scopes: list[str] | None, model: str, path: str, status: int
) -> None:
    answer = await inference.chat(model, path=path, headers={"authorization": f"Bearer {token(scopes=scopes)}"})
    assert answer.status == status
    if status == 403:
        assert (answer.error["type"], answer.error["code"]) == ("permission_error", "scope_missing")


async def test_only_tokens_in_the_digest_wait_for_admission(inference: FrontDoor) -> None:
    """There is no contract service here: a token that must be asked about gets no answer, every other one does."""
    mine, other = ({"authorization": f"Bearer {token(jti=jti)}"} for jti in ("key_1", "key_2"))
    assert (await inference.chat("big", headers=mine)).status == 200
    inference.control.set_admission_ids("keys", ["key_1"])
    assert await inference.control.settled(PATIENCE)
    refused, listed = await asyncio.gather(
        inference.chat("big", headers=mine), inference.send("GET", "/v1/models", headers=mine)
    )
    assert (refused.status, refused.error["code"]) == (503, "admission_unavailable")
    assert listed.status == 503
    assert (await inference.chat("big", headers=other)).status == 200
    assert (await inference.chat("big")).status == 200
    inference.control.set_admission_ids("keys", [])
    assert await inference.control.settled(PATIENCE)
    assert (await inference.chat("big", headers=mine)).status == 200


@pytest.mark.parametrize("key", ["not-needed", "sk-x", "sk-abcdefghijklmnopqrstuvwxyz"])
async def test_a_dummy_key_works_if_anonymous_is_allowed(inference: FrontDoor, key: str) -> None:
    assert (await inference.chat("big", headers={"authorization": f"Bearer {key}", "x-api-key": key})).status == 200
    assert not {"authorization", "x-api-key"} & engine(inference, "b").received[-1].headers.keys()


async def test_a_page_of_another_origin_cannot_be_anonymous(inference: FrontDoor) -> None:
    answer = await inference.chat("big", headers={"origin": "http://evil.example"})
    assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers
    plain = await inference.send("POST", CHAT, b'{"model":"big"}', {"content-type": "text/plain"})
    assert plain.status == 415
    rebound = await inference.chat("big", headers={"host": "evil.example:8080"})
    assert (rebound.status, rebound.error["code"]) == (403, "host_not_allowed")
    listing = await inference.send("GET", "/v1/models", None, {"origin": "http://evil.example"})
    assert listing.status == 403


async def test_an_allowed_origin_may_and_is_told_so(inference: FrontDoor) -> None:
    for origin in ("http://ui:5173", "https://a.ui.example"):
        answer = await inference.chat("big", headers={"origin": origin})
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, origin)
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    preflight = await inference.send("OPTIONS", CHAT, None, ask | {"origin": "http://ui:5173"})
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, "http://ui:5173")
    refused = await inference.send("OPTIONS", CHAT, None, ask | {"origin": "http://evil.example"})
    assert refused.status == 404
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.2", "localhost.", "[::1]"])
async def test_every_name_of_the_loopback_interface_counts(inference: FrontDoor, host: str) -> None:
    assert (await inference.chat("big", headers={"host": f"{host}:8080"})).status == 200
