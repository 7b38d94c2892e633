"""Retry policy of the client. Pure: the transport applies it.

A call is tried at most three times, within its deadline, and only if it is idempotent (the contract's idempotency_level, or a
request_id) and failed with UNAVAILABLE, within the mesh. The server's retry delay is a lower bound of the backoff.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from llamesh.client.errors import MeshError

MAX_TRIES = 3
"""Maximum number of tries of one call, the first included."""
FIRST_PAUSE = 0.1
MAX_PAUSE = 2.0
_OUTSIDE = {"SOURCE_UNAVAILABLE"}
"""Reasons of servers outside the mesh: the mesh has waited for them already, and further tries would end with the deadline instead."""


@cache
def repeatable(method: str) -> bool:
    """Whether the contract declares a method idempotent. Format of the name: "llamesh.v1.GatewayService/GetHealth"."""
    found = descriptor_pool.Default().FindMethodByName(method.replace("/", "."))
    return bool(found.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN)


def may_repeat(method: str, request: Message) -> bool:
    """Whether a call may be repeated: its method is idempotent, or its request has a `request_id`."""
    return repeatable(method) or bool(getattr(request, "request_id", ""))


def pause_before_next(
    error: MeshError, *, tries: int, may_repeat: bool, left: float, random: Callable[[], float]
) -> float | None:
    """Seconds to wait before the next try, None for none. `tries` were made; `left` seconds remain; `random` gives 0 to 1."""
    if error.code != "UNAVAILABLE" or error.reason in _OUTSIDE or not may_repeat or tries >= MAX_TRIES:
        return None
    pause = min(FIRST_PAUSE * 2 ** (tries - 1), MAX_PAUSE) * (0.5 + random())
    if error.retry_after is not None:
        # The server gives all clients the same delay, so add jitter after it and never retry earlier.
        pause = error.retry_after + pause
    return pause if pause < left else None
