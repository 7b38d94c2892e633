"""envoy/lua/route.lua treats a path without /v1 as the path with it: cluster, limits, rights and refusals."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from controller.xds import scripts, templates
from llamesh import names
from llamesh.kit import limits
from tests.unit.lua_request import LuaFilter, Outcome

ROUTE = LuaFilter(scripts.route({}))
UUID = "11111111-1111-4111-8111-111111111111"
PATHS = sorted(path for path in limits.paths() if not path.startswith("messages"))
CLAIMS = {"sub": "ada", "scopes": ["infer:smol", f"infer:{UUID}"], "uid": "u1", "standing": 1}
OPEN = {"kind": "inference", "anonymous": True, "host localhost": True}
CLOSED = {"kind": "inference"}
SMOL: dict[str, Any] = {"model": "smol"}


def send(
    path: str,
    body: Any,
    settings: dict[str, Any],
    claims: dict[str, Any] | None,
    content_type: str = "application/json",
) -> Outcome:
    headers = {":path": path, ":method": "POST", ":authority": "localhost:8080", "content-type": content_type}
    metadata = {} if claims is None else {names.CLAIMS_METADATA: {"claims": claims}}
    return ROUTE.run(headers, settings, metadata, json.dumps(body).encode())


def told(outcome: Outcome) -> tuple[Any, ...]:
    """What the client and the logs get of a refusal, which leaves the request's own headers as they were."""
    return outcome.status, outcome.answer, outcome.head, outcome.metadata


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("server", ["", f"/{UUID}"], ids=["by model", "by server"])
@pytest.mark.parametrize(
    ("body", "settings", "claims", "status"),
    [
        (SMOL, OPEN, None, None),
        (SMOL, CLOSED, CLAIMS, None),
        (SMOL, {**CLOSED, "ask tokens": True}, CLAIMS, None),
        (SMOL, {**CLOSED, "m:smol": {"ask": True, "silence": 9}, f"s:{UUID}": {"ask": True}}, CLAIMS, None),
        (SMOL, CLOSED, None, 401),
        (SMOL, {"kind": "inference", "anonymous": True, "host other": True}, None, None),
        (SMOL, CLOSED, {**CLAIMS, "scopes": ["manage", "infer:other"]}, 403),
        (SMOL, CLOSED, {**CLAIMS, "scopes": []}, 403),
        ({"model": "smol", "x": [[]] * 400_000}, OPEN, None, 400),
        ([], OPEN, None, 400),
    ],
)
def test_every_inference_path_is_treated_as_with_the_prefix(
    path: str, server: str, body: Any, settings: dict[str, Any], claims: dict[str, Any] | None, status: int | None
) -> None:
    with_prefix = send(f"{server}/v1/{path}", body, settings, claims)
    assert with_prefix.status == status
    for suffix in ("", "/", "?x=/a/v1/"):
        without = send(f"{server}/{path}{suffix}", body, settings, claims)
        assert without == with_prefix if status is None else told(without) == told(with_prefix)


def test_another_media_type_is_refused_alike() -> None:
    for path in PATHS:
        answers = [send(f"{prefix}/{path}", SMOL, OPEN, None, "text/plain") for prefix in ("", "/v1")]
        assert told(answers[0]) == told(answers[1])
        assert answers[0].status == 415


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/models", "/v1/models"),
        ("/models/", "/v1/models"),
        ("/models/smol", "/v1/models/smol"),
        ("/models/v1/models/x", "/v1/models/v1/models/x"),
        (f"/{UUID}/models", f"/{UUID}/v1/models"),
        (f"/{UUID}/v1/models", f"/{UUID}/v1/models"),
        ("/models?x=1", "/v1/models"),
    ],
)
def test_lists_of_models_get_the_prefix(path: str, sent: str) -> None:
    outcome = ROUTE.run({":path": path, ":method": "GET", ":authority": "localhost"}, {**OPEN, "kind": "models"}, {})
    assert (outcome.status, outcome.headers[":path"]) == (None, sent)


def test_the_list_of_one_server_needs_its_scope_without_the_prefix_too() -> None:
    headers = {":path": f"/{UUID}/models", ":method": "GET", ":authority": "localhost"}
    claims = {**CLAIMS, "scopes": ["infer:smol"]}
    outcome = ROUTE.run(headers, {"kind": "models"}, {names.CLAIMS_METADATA: {"claims": claims}})
    assert (outcome.status, outcome.code) == (403, "scope_missing")


def test_the_routes_take_the_same_paths_as_the_table_of_limits() -> None:
    document = yaml.safe_load((templates.FOLDER / "routes/inference.yaml").read_text())
    routes = {route["name"]: route for route in document["virtual_hosts"][0]["routes"]}
    taken = re.compile(routes["inference"]["match"]["safe_regex"]["regex"])
    assert taken.pattern == routes["wrong-method"]["match"]["safe_regex"]["regex"]
    for path in limits.paths():
        for server in ("", f"/{UUID}"):
            assert taken.fullmatch(f"{server}/v1/{path}")
            assert bool(taken.fullmatch(f"{server}/{path}")) == (path in PATHS), "Anthropic's clients always send /v1"
    for other in (
        "/completion",
        "/slots/0",
        f"/{UUID}",
        f"/{UUID}/slots",
        "/x/completions",
        f"/{UUID}x/completions",
        "/v1",
    ):
        assert not taken.fullmatch(other)
    listed = re.compile(routes["models"]["match"]["safe_regex"]["regex"])
    assert listed.pattern == routes["wrong-method-models"]["match"]["safe_regex"]["regex"]
    for path in ("/models", "/models/org/name:tag", f"/{UUID}/models", "/v1/models", f"/{UUID}/v1/models/smol"):
        assert listed.fullmatch(path)
    assert not listed.fullmatch("/x/models")
