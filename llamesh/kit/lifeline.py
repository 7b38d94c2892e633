"""Ends a process when its supervisor dies.

The supervisor holds the write end of a pipe, and every process below it inherits the read end. When the supervisor dies, the kernel closes
the write end, and the processes end. LLAMESH_LIFELINE_FD has the number of the descriptor; without it (a container, a test) nothing is
watched.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from llamesh.names import LIFELINE


def inherited_lifeline() -> int | None:
    """Return the inherited read end; None if there is none."""
    value = os.environ.get(LIFELINE)
    return int(value) if value else None


def watch_lifeline(on_end: Callable[[], None]) -> None:
    """Call `on_end` once, in the running event loop, when the supervisor has died."""
    descriptor = inherited_lifeline()
    if descriptor is None:
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(descriptor)
        on_end()

    loop.add_reader(descriptor, ended)
