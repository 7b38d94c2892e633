"""A stand-in for the handle that Envoy gives a Lua filter with an answer, so that errors of engines are put in shape without Envoy."""

from __future__ import annotations

import json
from typing import Any

from lupa.luajit21 import LuaRuntime

from controller.xds import scripts

_HANDLE = """
function handle(status, anthropic, text, length)
  local headers = { [":status"] = status, ["content-type"] = "application/json; charset=utf-8", ["content-length"] = length }
  local body = text
  envoy_on_response({
    headers = function()
      return { get = function(_, name) return headers[name] end, replace = function(_, name, value) headers[name] = tostring(value) end }
    end,
    streamInfo = function()
      return { dynamicMetadata = function() return { get = function() return { anthropic = anthropic } end } end }
    end,
    body = function()
      return {
        length = function() return #body end,
        getBytes = function(_, from, count) return body:sub(from + 1, from + count) end,
        setBytes = function(_, bytes) body = bytes return #bytes end,
      }
    end,
  })
  return headers[":status"], body, headers["content-length"]
end
"""


def runtime() -> LuaRuntime:
    """The filter, loaded once as Envoy does per worker."""
    lua = LuaRuntime(encoding=None)
    lua.execute(scripts.answers().encode())
    lua.execute(_HANDLE.encode())
    return lua


def reshaped(lua: LuaRuntime, status: int, body: str, *, anthropic: bool) -> tuple[int, Any]:
    """Status and body that a client gets for those of an engine."""
    sent = body.encode()
    seen, text, length = lua.globals()[b"handle"](str(status).encode(), anthropic, sent, str(len(sent)).encode())
    assert int(length) == len(text)
    return int(seen), json.loads(text)
