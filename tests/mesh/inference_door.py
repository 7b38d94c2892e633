"""The inference listener of a real Envoy with two servers behind it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from tests.mesh.front_door import PATIENCE, FrontDoor, StubEngine, front_door

A = "aaaaaaaa-1111-4111-8111-111111111111"

B = "bbbbbbbb-2222-4222-8222-222222222222"

CHAT = "/v1/chat/completions"

SMALL_LIMIT = 256 << 10


@contextlib.asynccontextmanager
async def inference_door() -> AsyncIterator[FrontDoor]:
    """Two servers: A is `smol` and `org/big:Q4`, B is `big` and the other replica of `smol`."""
    async with front_door(
        allowed_origins=frozenset({"http://ui:5173", "https://*.ui.example"}), max_body_bytes=SMALL_LIMIT
    ) as door:
        a, b = await door.engine("a"), await door.engine("b")
        door.serve(A, a, names=("smol", "org/big:Q4"))
        door.serve(B, b, names=("smol", "big"))
        assert await door.control.acknowledged(A, PATIENCE)
        assert await door.control.acknowledged(B, PATIENCE)
        yield door


def engine(door: FrontDoor, name: str) -> StubEngine:
    return next(each for each in door.engines if each.name == name)
