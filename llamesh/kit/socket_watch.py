"""Detects that the path of a listening Unix socket was deleted, alone or with its directory.

The kernel keeps such a listener and its open connections, but new clients cannot find it.
Invariant: the path of another process's socket counts as present: that process serves there now.
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from llamesh.background import BackgroundTask
from llamesh.kit.logs import log, report_failure

CHECK_SECONDS = 1.0
"""Seconds between two checks."""


class SocketWatch:
    """Calls `lost` if the path is missing or is not a socket, at each check until it is a socket again."""

    def __init__(self, path: Path, lost: Callable[[], Awaitable[None]], every: float = CHECK_SECONDS) -> None:
        self._path = path
        self._lost = lost
        self._task = BackgroundTask(
            f"look after {path.name}", self._check, report_failure, every=every, immediately=False
        )

    def start(self) -> None:
        """Start checking; the socket must exist."""
        self._task.start()

    async def close(self) -> None:
        """Stop checking."""
        await self._task.close()

    async def _check(self) -> None:
        if not self._there():
            log.error("the path of our socket has vanished", path=str(self._path))
            await self._lost()

    def _there(self) -> bool:
        try:
            return stat.S_ISSOCK(self._path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
