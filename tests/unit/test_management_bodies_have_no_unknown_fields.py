"""envoy/lua/strict_json.lua with the rules that public_api reads from the contracts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.xds import templates
from controller.xds.public_api import PublicApi
from tests.unit.lua_request import LuaFilter, Outcome

API = PublicApi(templates.FOLDER / "llamesh.binpb", ["llamesh.v1.GatewayService", "llamesh.v1.ContractService"])
STRICT = LuaFilter(f"local RULES = [==[{json.dumps(API.body_rules())}]==]\n{templates.lua('strict_json')}")


def run(body: Any, path: str = "/auth/token", verb: str = "POST", content_type: str = "application/json") -> Outcome:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return STRICT.run({":method": verb, ":path": path, "content-type": content_type}, {}, {}, text)


@pytest.mark.parametrize(
    ("body", "path", "verb"),
    [
        ({"username": "ada", "password": "x"}, "/auth/token", "POST"),
        ({"model_uuid": "m", "modelName": "n", "parameters": {"ctx_size": 2048}}, "/serve", "POST"),
        ({"replicas": 2}, "/servers/abc:scale?x=1", "POST"),
        ({}, "/servers/abc:wake", "POST"),
        (b"", "/servers/abc:wake", "POST"),
        ({"replicas": 2}, "/servers/abc", "PATCH"),
        ({"anything": 1}, "/nowhere", "POST"),
    ],
)
def test_known_fields_pass(body: Any, path: str, verb: str) -> None:
    assert run(body, path, verb).status is None


@pytest.mark.parametrize(
    ("body", "path", "field"),
    [
        ({"username": "ada", "pasword": "x"}, "/auth/token", "pasword"),
        (b'{"username":"a","\\u0078":1}', "/auth/token", "x"),
        ({"model_uuid": "m", "parameters": {"ctx_sise": 1}}, "/serve", "parameters.ctx_sise"),
        ([{"username": "a"}, {"no": 1}], "/auth/token", "[1].no"),
        ({'a"b\n': 1}, "/auth/token", "a?b?"),
    ],
)
def test_unknown_fields_are_named(body: Any, path: str, field: str) -> None:
    outcome = run(body, path)
    assert outcome.status == 400
    assert outcome.answer["code"] == 3
    info, bad = outcome.answer["details"]
    assert (info["reason"], info["domain"]) == ("INVALID_FIELD", "llamesh")
    assert bad["field_violations"] == [{"field": field, "description": "there is no such field"}]


@pytest.mark.parametrize(
    "body",
    [
        b"{username:'a',x:1}",
        b"{'username':'a'}",
        b'/**/{"username":"a"}',
        b"{",
        b'{"a"',
        b'{"a":}',
        b'"\\u12',
        b"\xff\xfe",
        b"[" * 10_000 + b"]" * 10_000,
    ],
)
def test_what_the_transcoder_would_read_though_it_is_no_json_is_refused(body: bytes) -> None:
    outcome = run(body)
    assert outcome.status == 400
    assert outcome.answer["details"][0]["reason"] == "INVALID_FIELD"


def test_other_content_is_415_and_grpc_is_left_alone() -> None:
    assert run(b"username=a", content_type="application/x-www-form-urlencoded").status == 415
    assert run(b"\0\0\0\0\0", content_type="application/grpc").status is None
    assert run(b"\0\0\0\0\0", content_type="application/grpc-web-text").status is None


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/servers/abc"),
        ("POST", "/serve"),
        ("POST", "/servers/abc:sleep"),
        ("POST", "/servers/abc:wake"),
        ("PATCH", "/users/ada"),
        ("DELETE", "/models/m?x=1"),
        ("PATCH", "/contracts/c"),
    ],
)
def test_a_condition_that_a_call_cannot_keep_is_refused(verb: str, path: str) -> None:
    outcome = STRICT.run(
        {":method": verb, ":path": path, "content-type": "application/json", "if-match": "*"}, {}, {}, b"{}"
    )
    assert outcome.status == 400
    info, bad = outcome.answer["details"]
    assert info["reason"] == "INVALID_FIELD"
    assert [violation["field"] for violation in bad["field_violations"]] == ["If-Match"]


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("PATCH", "/servers/abc"),
        ("POST", "/servers/abc:scale"),
        ("DELETE", "/stop/abc"),
        ("DELETE", "/servers/abc"),
        ("POST", "/llamesh.v1.GatewayService/ScaleServer"),
        ("GET", "/nowhere"),
    ],
)
def test_a_condition_that_a_call_keeps_is_let_through(verb: str, path: str) -> None:
    headers = {":method": verb, ":path": path, "content-type": "application/json", "if-match": '"3"'}
    assert STRICT.run(headers, {}, {}, b"{}").status is None


@pytest.mark.parametrize("body", [b"nul", b'{"username":1e2e2}', b'{"username":"a"} x'])
def test_finer_mistakes_are_left_to_the_transcoder(body: bytes) -> None:
    assert run(body).status is None


def test_the_anonymous_calls_are_those_of_the_design() -> None:
    open_calls = {(each.verb, each.path) for method in API.methods if method.anonymous for each in method.bindings}
    assert open_calls == {("POST", "/auth/token"), ("GET", "/health"), ("GET", "/.well-known/jwks.json")}
