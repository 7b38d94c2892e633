"""A stand-in for the handle that Envoy gives a Lua filter, so that the filters under envoy/lua run in LuaJIT without Envoy."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from lupa.luajit21 import LuaRuntime

_HANDLE = """
EnvoyTimestampResolution = { MICROSECOND = "us" }

local function object(values)
  return { values = values, get = function(self, name) return self.values[name] end }
end

function handle(headers, settings, metadata, body)
  local request = { answer = nil }
  local fetched = 0 -- what was fetched before the body was waited for may not be used after it
  local function checked(make)
    return function(self)
      local mine, inner = fetched, make()
      return setmetatable({}, { __index = function(_, name)
        assert(mine == fetched, "object used outside of proper scope")
        return function(_, ...) return inner[name](inner, ...) end
      end })
    end
  end
  request.headers = checked(function()
    local all = object(headers)
    function all:remove(name) self.values[name] = nil end
    function all:replace(name, value) self.values[name] = value end
    return all
  end)
  request.metadata = checked(function() return object(settings) end)
  -- One table stands for the metadata of the route and of its virtual host.
  function request:virtualHost() return { metadata = checked(function() return object(settings) end) } end
  function request:streamInfo()
    return { dynamicMetadata = checked(function()
      local all = object(metadata)
      function all:set(namespace, name, value)
        self.values[namespace] = self.values[namespace] or {}
        self.values[namespace][name] = value
      end
      return all
    end) }
  end
  function request:timestampString(resolution)
    assert(resolution == EnvoyTimestampResolution.MICROSECOND)
    return "1795000000000000"
  end
  function request:body()
    fetched = fetched + 1
    if body == nil then return nil end
    return {
      length = function() return #body end,
      getBytes = function(_, from, count) return body:sub(from + 1, from + count) end,
      setBytes = function(_, bytes) body = bytes; request.sent = bytes; return #bytes end,
    }
  end
  function request:base64Escape(bytes) return base64(bytes) end
  function request:respond(head, text) self.answer = { head = head, text = text } end
  envoy_on_request(request)
  return request.answer, request.sent
end
"""


@dataclass
class Outcome:
    """What a filter did."""

    status: int | None
    """None: the request goes on."""
    answer: Any
    headers: dict[str, str]
    metadata: dict[str, Any]
    sent: bytes | None = None
    """The body that goes on where the filter replaced it."""
    head: dict[str, str] = field(default_factory=dict)
    """The headers of an answer."""

    @property
    def code(self) -> str | None:
        """The code of a refusal, which OpenAI's shape has and Anthropic's has not."""
        code: str | None = self.metadata.get("llamesh", {}).get("code")
        if self.answer and "code" in self.answer["error"]:
            assert self.answer["error"]["code"] == code
        return code


@dataclass
class LuaFilter:
    """One script, loaded once as Envoy does per worker."""

    source: str
    _lua: Any = field(init=False)

    def __post_init__(self) -> None:
        self._lua = LuaRuntime(encoding=None)
        self._lua.execute(self.source.encode())
        self._lua.execute(_HANDLE.encode())
        self._lua.globals()[b"base64"] = base64.b64encode

    def run(
        self,
        headers: dict[str, str],
        settings: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        body: bytes | None = None,
    ) -> Outcome:
        sent, known = self._table(headers), self._table(metadata or {})
        answer, replaced = self._lua.globals()[b"handle"](sent, self._table(settings or {}), known, body)
        status = int(answer[b"head"][b":status"]) if answer else None
        head = _plain(answer[b"head"]) if answer else {}
        parsed = json.loads(answer[b"text"]) if "json" in head.get("content-type", "") else None
        return Outcome(status, parsed, _plain(sent), _plain(known), replaced, head)

    def _table(self, value: Any) -> Any:
        if isinstance(value, dict):
            table = self._lua.table()
            for key, item in value.items():
                table[key.encode()] = self._table(item)
            return table
        if isinstance(value, list):
            return self._lua.table(*(self._table(item) for item in value))
        return value.encode() if isinstance(value, str) else value


def _plain(table: Any) -> dict[str, Any]:
    return {
        key.decode() if isinstance(key, bytes) else str(key): value.decode("latin-1")
        if isinstance(value, bytes)
        else (_plain(value) if hasattr(value, "items") else value)
        for key, value in table.items()
    }
