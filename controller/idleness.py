"""When a server with `idle_sleep` may fall asleep: one rule for all runtimes. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence

from controller.observed import Desired, ObservedEngine, ObservedState


def idle_left(desired: Desired, state: ObservedState, running: Sequence[ObservedEngine]) -> float:
    """Return the seconds until the server may sleep, 0 or less if it may now; infinite if it never sleeps.

    The idle time begins when the last engine is ready: a held request arrives only afterwards. While an engine works, the idle time begins
    now at the earliest, and no event will announce its end.
    """
    if not desired.engine_count or not desired.idle_sleep:
        return math.inf
    if any(observed.busy for observed in running):
        return desired.idle_sleep
    latest = max(state.last_activity, *(observed.engine.ready_since or 0.0 for observed in running), 0.0)
    return latest + desired.idle_sleep - state.now
