"""envoy/lua/identity.lua: dummy keys, origins, hosts."""

from __future__ import annotations

from typing import Any

import pytest

from controller.xds import templates
from tests.unit.lua_request import LuaFilter, Outcome

IDENTITY = LuaFilter(templates.lua("identity"))
OPEN = {
    "kind": "inference",
    "anonymous": True,
    "host localhost": True,
    "host [::1]": True,
    "origin http://ui:5173": True,
}
CLOSED = {"kind": "inference", "host localhost": True}


def run(settings: dict[str, Any] = OPEN, **headers: str) -> Outcome:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return IDENTITY.run({":authority": "localhost:8080", ":path": "/v1/completions"} | named, settings)


@pytest.mark.parametrize("key", ["not-needed", "sk-abc123", "Bearer", "x"])
def test_a_key_without_a_dot_is_dropped_where_anonymous_is_allowed(key: str) -> None:
    outcome = run(authorization=f"Bearer {key}", x_api_key=key)
    assert outcome.status is None
    assert not {"authorization", "x-api-key"} & outcome.headers.keys()


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer sk-abc"}, {"authorization": "Basic YTpi"}, {"x_api_key": "k"}]
)
def test_without_a_token_nobody_passes_where_anonymous_is_not_allowed(headers: dict[str, str]) -> None:
    outcome = run(CLOSED, **headers)
    assert (outcome.status, outcome.code) == (401, "invalid_api_key")
    assert outcome.metadata["llamesh"]["refused"] is True


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_token_goes_on_to_be_verified(scheme: str) -> None:
    outcome = run(CLOSED, authorization=f"{scheme} a.b.c", origin="http://evil", x_api_key="d.e.f")
    assert outcome.status is None
    assert outcome.headers["authorization"] == "Bearer a.b.c"
    assert "x-api-key" not in outcome.headers


def test_a_token_may_come_as_api_key() -> None:
    outcome = run(CLOSED, x_api_key="a.b.c", authorization="Bearer not-needed")
    assert outcome.status is None
    assert outcome.headers["x-api-key"] == "a.b.c"
    assert "authorization" not in outcome.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://ui:5173", None), ("http://evil.example", 403), ("null", 403), ("http://ui:5173.evil", 403)],
)
def test_pages_of_other_origins_cannot_be_anonymous(origin: str, status: int | None) -> None:
    assert run(origin=origin).status == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", None),
        ("LOCALHOST:8080", None),
        ("[::1]:8080", None),
        ("evil.example:8080", 403),
        ("localhost.evil", 403),
        ("", 403),
    ],
)
def test_a_name_that_was_rebound_to_this_machine_cannot_be_anonymous(host: str, status: int | None) -> None:
    assert IDENTITY.run({":authority": host, ":path": "/"}, OPEN).status == status


def test_paths_that_do_not_exist_are_left_to_the_routes() -> None:
    assert run({}).status is None
