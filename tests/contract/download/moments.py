"""The moments of a transfer at which a process may be killed: before and after each step that leaves something in the store or the journal.

`kill_at` makes this process kill itself at one of them. A FAKE of fate: everything up to the moment is the real service.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

from services.download.partial_objects import PartialObjects
from services.download.publications import Publications
from services.download.staging import Staging
from services.download.transfers import Transfers
from services.download.unowned_objects import UnownedObjects

STEPS: dict[str, tuple[type, str]] = {
    "begin": (Transfers, "begin"),
    "create an object": (PartialObjects, "_begin"),
    "record a part": (PartialObjects, "record"),
    "complete an object": (Staging, "stage"),
    "hold an object": (UnownedObjects, "hold"),
    "publish a file": (Publications, "publish"),
    "record the model": (Publications, "record"),
    "remove an object": (PartialObjects, "_remove"),
}
"""Each step, by what it does; "complete an object" ends when all parts of a file are one staged object."""
MOMENTS = [(step, when) for step in STEPS for when in ("before", "after")]
"""Before a part is recorded the store has it; after the first of two files is published the second is not."""


def kill_at(step: str, when: str, number: int) -> None:
    """Let this process kill itself before or after a step is done for the `number`-th time."""
    owner, name = STEPS[step]
    done: Callable[..., Any] = getattr(owner, name)
    times = {"before": 0, "after": 0}

    def pass_by(now: str) -> None:
        times[now] += 1
        if (now, times[now]) == (when, number):
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(done)
    async def watched(*arguments: Any, **fields: Any) -> Any:
        pass_by("before")
        result = await done(*arguments, **fields)
        pass_by("after")
        return result

    setattr(owner, name, watched)
