"""One controller for one run directory: the lock that the kernel gives back however its holder ends."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from llamesh.kit.config import make_private
from llamesh.kit.logs import log

_POLL_SECONDS = 0.05


@asynccontextmanager
async def exclusive(run_dir: Path) -> AsyncIterator[None]:
    """Be the only controller of this run directory; wait for one that is still ending."""
    path = make_private(run_dir) / "controller.lock"
    with path.open("ab") as file:
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    log.warning("another controller still runs here; waiting for its end", lock=str(path))
                said = True
                await asyncio.sleep(_POLL_SECONDS)
        yield
