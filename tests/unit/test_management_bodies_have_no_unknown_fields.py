"""envoy/lua/strict_json.lua with the rules that public_api reads from the contracts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.xds import scripts, templates
from controller.xds.public_api import PublicApi
from tests.unit.lua_request import LuaFilter, Outcome

API = PublicApi(templates.FOLDER / "llamesh.binpb", ["llamesh.v1.GatewayService", "llamesh.v1.ContractService"])
STRICT = LuaFilter(scripts.strict_json(API))


def run(
    body: Any,
    path: str = "/auth/token",
    verb: str = "POST",
    content_type: str = "application/json",
    **headers: str,
) -> Outcome:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return STRICT.run({":method": verb, ":path": path, "content-type": content_type} | headers, {}, {}, text)


def violation(outcome: Outcome) -> dict[str, str]:
    """The one field that a refusal names."""
    assert outcome.status == 400
    assert outcome.answer["code"] == 3
    info, remedy, bad = outcome.answer["details"]
    assert remedy["message"] == "Correct the named fields."
    assert (info["reason"], info["domain"]) == ("INVALID_FIELD", "llamesh")
    (found,) = bad["field_violations"]
    assert info["metadata"] == {"fields": found["field"]}
    assert outcome.answer["message"] == f"{found['field']}: {found['description']}"
    return dict(found)


@pytest.mark.parametrize(
    ("body", "path", "verb"),
    [
        ({"username": "ada", "password": "x"}, "/auth/token", "POST"),
        ({"model_uuid": "m", "modelName": "n", "parameters": {"ctx_size": 2048}}, "/serve", "POST"),
        ({"replicas": 2}, "/servers/abc:scale", "POST"),
        ({"replicas": "2"}, "/servers/abc:scale", "POST"),
        ({"replicas": 2.0}, "/servers/abc:scale", "POST"),
        ({"replicas": None}, "/servers/abc:scale", "POST"),
        ({}, "/servers/abc:wake", "POST"),
        (b"", "/servers/abc:wake", "POST"),
        ({"replicas": 2}, "/servers/abc", "PATCH"),
        (b"", "/servers?page_size=10&pageToken=a%2Bb", "GET"),
        (b"", "/health/", "GET"),
        (b"", "/health", "HEAD"),
    ],
)
def test_a_body_that_fits_the_contract_passes(body: Any, path: str, verb: str) -> None:
    assert run(body, path, verb).answer is None


@pytest.mark.parametrize(
    ("body", "path", "field"),
    [
        ({"username": "ada", "pasword": "x"}, "/auth/token", "pasword"),
        (b'{"username":"a","\\u0078":1}', "/auth/token", "x"),
        ({"model_uuid": "m", "parameters": {"ctx_sise": 1}}, "/serve", "parameters.ctx_sise"),
        ({'a"b\n': 1}, "/auth/token", "a?b?"),
        # Forms of a path that Envoy's transcoder takes for the same call.
        ({"username": "ada", "x": 1}, "/auth/token/", "x"),
        ({"replicas": 1, "x": 1}, "/servers/a:b:scale", "x"),
        (b'{"parameters":{"ctx_sise":1},"parameters":{"ctx_size":1}}', "/serve", "parameters.ctx_sise"),
    ],
)
def test_unknown_fields_are_named(body: Any, path: str, field: str) -> None:
    found = violation(run(body, path))
    assert found["field"] == field
    assert found["description"].startswith("there is no such field")


@pytest.mark.parametrize(
    ("body", "path", "verb", "near"),
    [
        ({"pasword": "x"}, "/auth/token", "POST", "password"),
        ({"Password": "x"}, "/auth/token", "POST", "password"),
        ({"parameters": {"ctx_sise": 1}}, "/serve", "POST", "ctx_size"),
        ({"parameters": {"ctxSise": 1}}, "/serve", "POST", "ctxSize"),
        ({"parameters": {"context": 1}}, "/serve", "POST", None),
        ({"x": 1}, "/auth/token", "POST", None),
        ({"p" * 5000: 1}, "/auth/token", "POST", None),
        (b"", "/servers?page_sise=10", "GET", "page_size"),
        (b"", "/servers?colour=10", "GET", None),
    ],
)
def test_an_unknown_field_is_answered_with_the_nearest(body: Any, path: str, verb: str, near: str | None) -> None:
    hint = f"; did you mean {near}?" if near else ""
    assert violation(run(body, path, verb))["description"] == f"there is no such field{hint}"


@pytest.mark.parametrize("body", [b'{"username":"a","username":"b"}', b'{"model_uuid":"a","modelUuid":"b"}'])
def test_a_field_that_stands_twice_is_refused(body: bytes) -> None:
    outcome = run(body, "/serve" if b"model" in body else "/auth/token")
    assert violation(outcome)["description"] == "is given twice"


@pytest.mark.parametrize(
    ("body", "path", "field", "words"),
    [
        ({"username": 7}, "/auth/token", "username", "a string"),
        ({"username": ["a"]}, "/auth/token", "username", "a string"),
        ({"replicas": "many"}, "/servers/a:scale", "replicas", "a whole number from 1 to 1000"),
        ({"replicas": 99999999999}, "/servers/a:scale", "replicas", "a whole number"),
        ({"replicas": -1}, "/servers/a:scale", "replicas", "a whole number"),
        ({"replicas": 1.5}, "/servers/a:scale", "replicas", "a whole number"),
        ({"replicas": {}}, "/servers/a:scale", "replicas", "a whole number"),
        ({"parameters": 3}, "/serve", "parameters", "an object"),
        ({"parameters": {"ctx_size": "x"}}, "/serve", "parameters.ctx_size", "a whole number"),
        ({"scopes": "manage"}, "/keys", "scopes", "a list"),
        ({"scopes": ["manage", 1]}, "/keys", "scopes[1]", "a string"),
        ({"wake_budget": "soon"}, "/serve", "wake_budget", "seconds"),
    ],
)
def test_values_of_another_type_are_named_in_plain_words(body: Any, path: str, field: str, words: str) -> None:
    found = violation(run(body, path))
    assert found["field"] == field
    assert words in found["description"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/health?nope=1", "nope"),
        ("/servers?page_size=many", "page_size"),
        ("/status?a.b=1", "a.b"),
        ("/health?%78", "x"),
    ],
)
def test_parameters_of_a_query_are_held_against_the_contract(path: str, field: str) -> None:
    assert violation(run(b"", path, "GET"))["field"] == field


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
        b"[" * 5_000 + b"]" * 5_000,
        b"nul",
        b'{"username":1e2e2}',
        b'{"username":01}',
        b'{"username":"a"} x',
        b'{"username":"a\nb"}',
        b'{"username":"\\q"}',
        b'[{"username":"a"}]',
        b'"text"',
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    outcome = run(body)
    assert outcome.status == 400
    assert outcome.answer["details"][0]["reason"] == "INVALID_FIELD"


COSTLY = {
    "objects": b'{"scopes":[' + b"{}," * 349_000 + b"1]}",
    "numbers": b'{"scopes":[' + b"1," * 523_000 + b"1]}",
    "names": b"{" + b",".join(b'"%x":0' % number for number in range(100_000)) + b"}",
    "escapes": b'{"name":"' + b"\\n" * 520_000 + b'"}',
    "depth": b'{"name":' + b"[" * 500_000,
}


@pytest.mark.parametrize("of", COSTLY)
def test_a_body_that_takes_much_to_read_is_refused_before_it_is_read(of: str) -> None:
    """In Envoy the memory would stay taken, and all other requests of the worker would wait."""
    lua = LuaFilter(scripts.strict_json(API))
    lua._lua.execute(b"collectgarbage('stop')")
    before = lua._lua.eval(b"collectgarbage('count')")
    headers = {":method": "POST", ":path": "/keys", "content-type": "application/json", "x-llamesh-claims": "e30"}
    outcome = lua.run(headers, {}, {}, COSTLY[of])
    assert outcome.status == 400
    assert (
        "The body has more than" in outcome.answer["message"] or "The body has values more" in outcome.answer["message"]
    )
    assert lua._lua.eval(b"collectgarbage('count')") - before < 12 * 1024, "KiB, of which the body is 1024"


def test_a_long_body_needs_a_token() -> None:
    body = {"username": "a", "password": "b" * 16384}
    refused = run(body)
    assert refused.status == 413
    assert "without a token" in refused.answer["message"]
    assert "16384" in refused.answer["message"]
    assert run(body, **{"x-llamesh-claims": "e30"}).answer is None
    longest = {"username": "\U0001f600" * 64, "password": "\U0001f600" * 256}
    assert run(json.dumps(longest).encode()).answer is None


@pytest.mark.parametrize(("verb", "path"), [("GET", "/health"), ("HEAD", "/health"), ("GET", "/.well-known/jwks.json")])
def test_a_get_takes_no_body(verb: str, path: str) -> None:
    assert run({"x": 1}, path, verb).answer["message"] == "This call takes no body."
    assert run(b"x" * 16385, path, verb).status == 413
    assert run({}, path, verb).answer is None


def test_the_longest_body_of_a_contract_passes() -> None:
    """Lists of a thousand names, each character escaped as many clients do."""
    body = {"name": "n", "models": ["\u6a21" * 16 for _ in range(1000)]}
    outcome = run(json.dumps(body).encode(), "/contracts", **{"x-llamesh-claims": "e30"})
    assert "The body has" not in json.dumps(outcome.answer)


def test_a_byte_order_mark_is_taken_off() -> None:
    outcome = run(b'\xef\xbb\xbf{"username":"a"}')
    assert outcome.answer is None
    assert outcome.sent == b'{"username":"a"}'
    assert outcome.headers["content-length"] == "16"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "application/json-seq",
        "application/json, application/grpc",
        "application/grpc, application/json",
        "application/grpcx",
        "application/grpc-x",
        "application/grpc_json",
        "application/grpc;x=1",
        "application/grpc ",
        "APPLICATION/GRPC",
        "application/GRPC+proto",
        "application/grpc-web",
        "application/grpc-web; x=1",
        "application/grpc-web-text",
        "",
    ],
)
def test_only_content_types_that_envoy_takes_for_grpc_are_not_checked(content_type: str) -> None:
    """Envoy has made gRPC of gRPC-Web before; what still has that name is none."""
    assert run({"username": "a", "x": 1}, content_type=content_type).status == 415


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto", "application/grpc+"])
def test_grpc_is_left_alone(content_type: str) -> None:
    assert run(b"\0\0\0\0\0", "/llamesh.v1.GatewayService/GetHealth", content_type=content_type).answer is None


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/json "])
def test_json_is_json_in_any_case(content_type: str) -> None:
    assert run({"username": "a"}, content_type=content_type).answer is None


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "gzip, identity"])
def test_encoded_bodies_are_refused_by_name(encoding: str) -> None:
    outcome = run(b"\x1f\x8b", **{"content-encoding": encoding})
    assert outcome.status == 415
    assert f"Content-Encoding {encoding}" in outcome.answer["message"]


def test_identity_is_no_encoding() -> None:
    assert run({"username": "a"}, **{"content-encoding": "Identity"}).answer is None


@pytest.mark.parametrize(
    ("verb", "path"), [("POST", "/nowhere"), ("PATCH", "/health"), ("GET", "/a/b/c"), ("PUT", "/")]
)
def test_a_path_that_no_call_has_is_refused(verb: str, path: str) -> None:
    outcome = run({"anything": 1}, path, verb)
    assert outcome.status == 404
    assert outcome.answer["details"][0]["reason"] == "NOT_IMPLEMENTED"
    assert f"{verb} {path}".rstrip("/") in outcome.answer["message"]


def test_every_call_of_the_contracts_is_known() -> None:
    for method in API.methods:
        for each in method.bindings:
            path = each.path.replace("{", "").replace("}", "")
            assert (run(b"", path, each.verb).answer is None) is not method.internal


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
    info, _, bad = outcome.answer["details"]
    assert info["reason"] == "INVALID_FIELD"
    assert [violation["field"] for violation in bad["field_violations"]] == ["If-Match"]


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("PATCH", "/servers/abc"),
        ("POST", "/servers/abc:scale"),
        ("DELETE", "/stop/abc"),
        ("DELETE", "/servers/abc"),
    ],
)
def test_a_condition_that_a_call_keeps_is_let_through(verb: str, path: str) -> None:
    headers = {":method": verb, ":path": path, "content-type": "application/json", "if-match": '"3"'}
    assert STRICT.run(headers, {}, {}, b"{}").status is None


def test_the_anonymous_calls_are_those_of_the_design() -> None:
    open_calls = {(each.verb, each.path) for method in API.methods if method.anonymous for each in method.bindings}
    assert open_calls == {("POST", "/auth/token"), ("GET", "/health"), ("GET", "/.well-known/jwks.json")}
