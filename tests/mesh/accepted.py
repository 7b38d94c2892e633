"""Which bodies the front door lets through, asked of its filter without Envoy: how large a family of hostile bodies may become."""

from __future__ import annotations

from controller.xds import scripts
from tests.mesh.hostile_bodies import Family
from tests.unit.lua_request import LuaFilter

_SETTINGS = {"kind": "inference", "anonymous": True, "host localhost": True}
_MODEL = "m"


class FrontDoor:
    """The filter with the defaults of its table."""

    def __init__(self) -> None:
        self._filter = LuaFilter(scripts.route({}))
        self._largest: dict[str, int] = {}

    def lets_through(self, path: str, body: bytes) -> bool:
        """Whether the body would reach an engine."""
        headers = {":path": path, ":method": "POST", ":authority": "localhost", "content-type": "application/json"}
        return self._filter.run(headers, dict(_SETTINGS), {}, body).status is None

    def largest(self, family: Family) -> int:
        """The largest size of a family that passes, as far as its own sizes go; 0 if none does."""
        if family.name not in self._largest:
            self._largest[family.name] = self._bisect(family)
        return self._largest[family.name]

    def _bisect(self, family: Family) -> int:
        low, high = 0, family.sizes[-1]
        while low < high:
            middle = (low + high + 1) // 2
            if self.lets_through(family.path, family.body(middle, _MODEL)):
                low = middle
            else:
                high = middle - 1
        return low
