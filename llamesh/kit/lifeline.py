"""No process outlives its supervisor. The supervisor holds the write end of a pipe; everyone below inherits the read end and
ends when it closes, which the kernel sees to however the supervisor dies.

The descriptor's number stands in LLAMESH_LIFELINE_FD; without it (a container, a test) nothing is watched.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from llamesh.names import LIFELINE


def inherited_lifeline() -> int | None:
    """The read end that this process inherited; None where it has none."""
    value = os.environ.get(LIFELINE)
    return int(value) if value else None


def watch_lifeline(on_end: Callable[[], None]) -> None:
    """Call `on_end` once in the running loop when the supervisor is gone."""
    descriptor = inherited_lifeline()
    if descriptor is None:
        return
    loop = asyncio.get_running_loop()

    def ended() -> None:
        loop.remove_reader(descriptor)
        on_end()

    loop.add_reader(descriptor, ended)
