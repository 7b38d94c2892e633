"""envoy/lua/route.lua: what a token's scopes allow, and when Admission is asked."""

from __future__ import annotations

from typing import Any

import pytest

from controller.xds.digest import Digest
from tests.unit.route_filter import OPEN, UUID, run


@pytest.mark.parametrize(
    ("scopes", "path", "status"),
    [
        (["infer:*"], "/v1/completions", None),
        (["manage", "infer:smol"], "/v1/completions", None),
        ([f"infer:{UUID}"], f"/{UUID}/v1/completions", None),
        (["infer:smo", "infer:smol2"], "/v1/completions", 403),
        (["infer:smol"], f"/{UUID}/v1/completions", 403),
        (["manage", "admin"], "/v1/completions", 403),
        ([], "/v1/completions", 403),
    ],
)
def test_the_tokens_scope_must_cover_the_target(scopes: list[str], path: str, status: int | None) -> None:
    outcome = run(path=path, claims={"sub": "ada", "scopes": scopes}, settings={"kind": "inference"})
    assert outcome.status == status
    assert ("x-llamesh-cluster" in outcome.headers) == (status is None)


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        (None, "infer:*"),
        ({"scopes": ["infer:*", "manage", "admin"]}, "infer:*"),
        ({"scopes": ["manage", "infer:smol", "infer:org/big:q4"]}, "infer:smol,infer:org/big:q4"),
        ({"scopes": ["infer:a,infer:*", "infer:b\r\nx: %"]}, "infer:a%2Cinfer:*,infer:b%0D%0Ax:%20%25"),
        ({"scopes": ["manage", "admin", "xinfer:*"]}, ""),
        ({}, ""),
    ],
)
def test_the_waker_gets_the_scopes_of_a_caller_who_lists_models(claims: dict[str, Any] | None, told: str) -> None:
    outcome = run(b"", settings=OPEN | {"kind": "models"}, path="/v1/models", content_type=None, claims=claims)
    assert (outcome.status, outcome.headers["x-llamesh-scopes"]) == (None, told)
    for path in (f"/{UUID}/v1/models", f"/{UUID}/v1/models/smol?x=1"):
        outcome = run(b"", settings=OPEN | {"kind": "models"}, path=path, content_type=None, claims=claims)
        assert outcome.code == (None if told == "infer:*" else "scope_missing")


def test_a_token_for_a_server_lists_that_server() -> None:
    claims = {"scopes": [f"infer:{UUID}"]}
    outcome = run(b"", settings={"kind": "models"}, path=f"/{UUID}/v1/models", content_type=None, claims=claims)
    assert (outcome.status, outcome.headers["x-llamesh-scopes"]) == (None, f"infer:{UUID}")


def test_a_token_without_scopes_may_nothing() -> None:
    assert run(claims={"sub": "ada"}).code == "scope_missing"


def test_a_missing_token_is_refused_unless_anonymous_inference_is_allowed() -> None:
    assert run(settings={"kind": "inference"}).status == 401


TOKEN = {"sub": "ada", "uid": "usr_1", "standing": 3, "jti": "key_1", "scopes": ["infer:*"], "contract": "ctr_1"}


def about(*ids: str) -> dict[str, Any]:
    digest = Digest()
    digest.set(ids)
    told = digest.metadata()
    return OPEN | told.route | told.host


@pytest.mark.parametrize(
    ("claims", "settings", "ask"),
    [
        (TOKEN, OPEN, None),
        (TOKEN, about("key_2", "usr_1:2", "usr_2:3", "ctr_2", ""), None),
        (TOKEN, about("key_1"), True),
        (TOKEN, about("usr_1:3"), True),
        (TOKEN, about("ctr_1"), True),
        (TOKEN | {"user_contract": "ctr_2"}, about("ctr_2"), True),
        (TOKEN | {"contract": ""}, about("key_2"), None),
        (TOKEN, OPEN | {"ask tokens": True}, True),
        ({"sub": "ada", "scopes": ["infer:*"]}, OPEN, True),
        ({"sub": "ada", "scopes": ["infer:*"], "uid": "usr_1"}, OPEN, True),
        (TOKEN, OPEN | {"m:smol": {"ask": True}}, True),
        (None, OPEN | {"m:smol": {"ask": True}}, True),
        (None, OPEN | {"m:other": {"ask": True}}, None),
        (None, about("key_1") | {"ask tokens": True}, None),
    ],
)
def test_admission_is_asked_about_changed_and_limited_tokens_and_metered_servers(
    claims: dict[str, Any] | None, settings: dict[str, Any], ask: bool | None
) -> None:
    outcome = run(claims=claims, settings=settings)
    assert outcome.status is None
    assert outcome.metadata.get("llamesh", {}).get("ask") is ask


@pytest.mark.parametrize(("settings", "ask"), [(about("key_2"), None), (about("key_1"), True)])
def test_admission_is_also_asked_if_a_caller_lists_models(settings: dict[str, Any], ask: bool | None) -> None:
    outcome = run(b"", settings=settings | {"kind": "models"}, path="/v1/models", content_type=None, claims=TOKEN)
    assert outcome.status is None
    assert outcome.metadata.get("llamesh", {}).get("ask") is ask
