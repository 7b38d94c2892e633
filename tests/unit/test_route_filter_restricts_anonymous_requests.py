"""envoy/lua/route.lua: origins and hosts of requests that no verified token came with."""

from __future__ import annotations

from typing import Any

import pytest

from controller.xds import scripts
from tests.unit.lua_request import LuaFilter, Outcome

ROUTE = LuaFilter(scripts.route({}))
OPEN = {
    "kind": "inference",
    "anonymous": True,
    "host llm.internal": True,
    "origin http://ui:5173": True,
    "origin https://*.example.com": True,
    "origin https://*.app.test:8443": True,
}
CLOSED = {"kind": "inference"}
VERIFIED = {"envoy.filters.http.jwt_authn": {"claims": {"scopes": ["infer:*"]}}}


def run(
    settings: dict[str, Any] = OPEN,
    *,
    metadata: dict[str, Any] | None = None,
    host: str = "localhost:8080",
    **headers: str,
) -> Outcome:
    usual = {":authority": host, ":path": "/v1/completions", "content-type": "application/json"}
    return ROUTE.run(usual | headers, settings, metadata, b'{"model":"smol"}')


@pytest.mark.parametrize("kind", ["inference", "models"])
def test_a_request_without_a_token_is_401_unless_anonymous_is_allowed(kind: str) -> None:
    outcome = run(CLOSED | {"kind": kind})
    assert (outcome.status, outcome.code) == (401, "invalid_api_key")
    assert outcome.metadata["llamesh"]["refused"] is True


def test_a_verified_token_passes_wherever_it_comes_from() -> None:
    outcome = run(CLOSED, metadata=VERIFIED, host="evil.example", origin="http://evil")
    assert outcome.status is None
    assert outcome.headers["x-llamesh-cluster"] == "m:smol"


@pytest.mark.parametrize("kind", ["inference", "models"])
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://ui:5173", None),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://ui:5173.evil", 403),
        ("https://a.example.com", None),
        ("https://a.b.example.com", None),
        ("https://a.app.test:8443", None),
        ("https://a.app.test", 403),
        ("https://example.com", 403),
        ("http://a.example.com", 403),
        ("https://a.example.com:8443", 403),
        ("https://a.example.com.evil", 403),
        ("https://evilexample.com", 403),
        ("https://.example.com", 403),
        ("https://a..example.com", 403),
        ("https://evil/.example.com", 403),
        ("https://evil@a.example.com", 403),
        ("https://" + "a." * 200 + "example.com", 403),
    ],
)
def test_pages_of_other_origins_cannot_be_anonymous(origin: str, status: int | None, kind: str) -> None:
    outcome = run(OPEN | {"kind": kind}, origin=origin)
    assert (outcome.status, outcome.code) == (status, status and "origin_not_allowed")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", None),
        ("LOCALHOST:8080", None),
        ("localhost.", None),
        ("localhost.:8080", None),
        ("[::1]:8080", None),
        ("[::]:8080", None),
        ("[::ffff:127.0.0.1]", None),
        ("127.0.0.1", None),
        ("127.0.0.2:8080", None),
        ("127.255.255.254", None),
        ("0.0.0.0:8080", None),
        ("llm.internal", None),
        ("LLM.internal.:80", None),
        ("evil.example:8080", 403),
        ("localhost.evil", 403),
        ("evil.localhost", 403),
        ("127.0.0.1.evil", 403),
        ("127.0.0.1..", 403),
        ("127.evil", 403),
        ("10.0.0.1", 403),
        ("[::2]", 403),
        ("[::ffff:10.0.0.1]", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_rebound_to_this_machine_cannot_be_anonymous(host: str, status: int | None) -> None:
    outcome = run(host=host)
    assert (outcome.status, outcome.code) == (status, status and "host_not_allowed")


def test_a_refusal_names_the_host_or_origin_and_the_setting() -> None:
    message = run(host='evil"\n.example:8080').answer["error"]["message"]
    assert "evil??.example" in message
    assert "LLAMESH_ALLOWED_HOSTS" in message
    message = run(origin="http://evil.example").answer["error"]["message"]
    assert "http://evil.example" in message
    assert "LLAMESH_ALLOWED_ORIGINS" in message
    assert len(run(host="x" * 9000).answer["error"]["message"]) < 600


def test_paths_that_do_not_exist_are_left_to_the_routes() -> None:
    assert run({}, host="evil.example").status is None
