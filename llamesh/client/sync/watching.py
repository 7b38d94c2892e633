# Written from aio/watching.py by tools/sync_client.py; edit there.

"""Keeps a watch open: a stream that is lost is opened again, until its reader stops."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from llamesh.client import errors
from llamesh.client.silence import Silence

FIRST_RECONNECT = 0.1
MAX_RECONNECT = 5.0

Event = TypeVar("Event")


def is_full(error: errors.MeshError) -> bool:
    """Whether a watch was refused because its user has as many open as one may have: the end of another one makes room."""
    return error.reason == "TOO_MANY_WATCHES"


def watched(
    begin: Callable[[float | None], Iterator[Event]],
    seconds: float | None,
    silence: Silence,
    starts_over: Callable[[errors.MeshError], bool] = lambda _: False,
) -> Iterator[Event]:
    """Yield the events of the streams that `begin` opens, one after the other; its argument is the deadline of a stream.

    Errors that a retry may cure, and those for which `starts_over` returns true, open the next stream after a pause. Raises all others,
    DeadlineExceeded after `seconds`, and the error of the last try if the mesh has not answered for the seconds that `silence` allows.
    """
    ends = time.monotonic() + seconds if seconds is not None else math.inf
    pause = FIRST_RECONNECT
    lost = math.inf
    while True:
        left = ends - time.monotonic()
        if left <= 0:
            raise errors.of_reason("DEADLINE_EXCEEDED", f"it did not come about within {seconds:g} s")
        try:
            for event in begin(None if left == math.inf else left):
                pause, lost = FIRST_RECONNECT, math.inf
                silence.ends()
                yield event
        except errors.MeshError as error:
            if starts_over(error):
                # A refusal is an answer too.
                lost = math.inf
                silence.ends()
            elif error.code not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                raise
            elif (now := time.monotonic()) < ends:
                if lost == math.inf:
                    lost = now
                else:
                    silence.lasts(now - lost)
                if now - lost >= silence.max_seconds:
                    raise
        time.sleep(max(min(pause, ends - time.monotonic()), 0))
        pause = min(pause * 2, MAX_RECONNECT)
