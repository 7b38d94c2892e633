"""Notices that the path of a Unix socket does not lead to its listener any more: it was deleted, alone or with its directory.

The kernel keeps such a listener, and the connections that it has, but nobody new finds it.
Invariant: a path that leads to another process's socket is left alone; that process serves there now.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure

LOOK_SECONDS = 1.0
"""How often the path is looked at."""


class SocketWatch:
    """Calls `lost` if the path of a socket that we listen on has vanished, or is no socket; again and again until it is one."""

    def __init__(self, path: Path, lost: Callable[[], Awaitable[None]], every: float = LOOK_SECONDS) -> None:
        self._path = path
        self._lost = lost
        self._task = BackgroundTask(
            f"look after {path.name}", self._look, report_failure, every=every, immediately=False
        )

    def start(self) -> None:
        """Begin; the path leads to our socket now."""
        self._task.start()

    async def close(self) -> None:
        """Look no more."""
        await self._task.close()

    async def _look(self) -> None:
        if not self._there():
            log.error("the path of our socket has vanished", path=str(self._path))
            await self._lost()

    def _there(self) -> bool:
        try:
            return stat.S_ISSOCK(self._path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
