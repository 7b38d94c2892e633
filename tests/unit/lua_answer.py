"""A stand-in for the handle that Envoy gives a Lua filter with an answer that succeeds: it measures answers without Envoy.

`tests/unit/lua_response.py` is the one for errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lupa.luajit21 import LuaRuntime

from controller.xds import scripts

PIECE_MICROSECONDS = 30_000
"""Time between two pieces of an answer. The first piece arrives this long after the request."""

_HANDLE = """
EnvoyTimestampResolution = { MICROSECOND = "us" }

function handle(status, kind, request, pieces, leaves, pause)
  local said, at, began = {}, 0, 1795000000000000
  local metadata = {
    get = function(_, name) return ({ ["llamesh"] = request, ["llamesh.began"] = { microseconds = began } })[name] end,
    set = function(_, namespace, name, value) assert(namespace == "llamesh.usage"); said[name] = value end,
  }
  local info = { dynamicMetadata = function() return metadata end }
  coroutine.wrap(envoy_on_response)({
    headers = function()
      return { get = function(_, name) return ({ [":status"] = status, ["content-type"] = kind })[name] end }
    end,
    streamInfo = function() return info end,
    timestampString = function(_, resolution)
      assert(resolution == EnvoyTimestampResolution.MICROSECOND)
      return string.format("%.0f", began + pause * at)
    end,
    bodyChunks = function()
      return function()
        at = at + 1
        local piece = pieces[at]
        if not piece and leaves then
          coroutine.yield() -- the client has left: Envoy never resumes the script
        end
        return piece and {
          length = function() return #piece end,
          getBytes = function(_, _, count) assert(count > 0, "Envoy ends here") return piece end,
        }
      end
    end,
  })
  return said, at
end
"""


@dataclass(frozen=True)
class Measured:
    """What the filter made of an answer."""

    numbers: dict[str, int]
    """The metadata `llamesh.usage`."""
    pieces: int
    """How many pieces the script has asked for; one more than there are if it has read all."""


def runtime() -> LuaRuntime:
    """The filter, loaded once as Envoy does per worker."""
    lua = LuaRuntime(encoding=None)
    lua.execute(scripts.answers().encode())
    lua.execute(_HANDLE.encode())
    return lua


def measured(
    lua: LuaRuntime,
    kind: str,
    pieces: Sequence[bytes],
    status: str = "200",
    *,
    leaves: bool = False,
    pause: int = PIECE_MICROSECONDS,
    **request: Any,
) -> Measured:
    """`request`: the metadata that route.lua has written about the request. `leaves`: the client leaves after the last piece.

    `pause`: microseconds from one piece to the next; less than 0 if the clock is set back.
    """
    about = lua.table_from({key.encode(): value for key, value in request.items()})
    sent = lua.table_from(list(pieces))
    handle = lua.globals()[b"handle"]
    said, asked_for = handle(status.encode(), kind.encode(), about, sent, leaves, pause)
    return Measured({key.decode(): int(value) for key, value in said.items()}, int(asked_for))
