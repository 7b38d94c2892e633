"""Runs envoy/lua/route.lua on one inference request."""

from __future__ import annotations

import json
from typing import Any

from controller.xds import scripts
from tests.unit.lua_request import LuaFilter, Outcome

ROUTE = LuaFilter(scripts.route({}))

UUID = "11111111-1111-4111-8111-111111111111"

OPEN = {"kind": "inference", "anonymous": True, "host localhost": True}

CLAIMS = "envoy.filters.http.jwt_authn"


def run(
    body: Any = None,
    *,
    path: str = "/v1/chat/completions",
    settings: dict[str, Any] = OPEN,
    claims: dict[str, Any] | None = None,
    content_type: str | None = "application/json",
    **more: str,
) -> Outcome:
    text = body if isinstance(body, bytes) else json.dumps(body if body is not None else {"model": "smol"}).encode()
    headers = {":path": path, ":method": "POST", ":authority": "localhost:8080"}
    headers |= {"content-type": content_type} if content_type else {}
    headers |= more
    return ROUTE.run(headers, settings, {CLAIMS: {"claims": claims}} if claims is not None else {}, text)
