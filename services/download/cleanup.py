"""Removes what transfers have left in the store, beside the loop that starts other transfers.

The loop waits for a removal for PATIENCE_SECONDS, so that a transfer finds the room which an ended one had. A store that does not answer
costs the loop this time once: a removal that still runs is not waited for again, and no other begins beside it.

Invariant: neither a failure nor a stall of a removal stops the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from llamesh.kit.logs import report_failure

PATIENCE_SECONDS = 2.0
"""Seconds for which a caller waits for the end of a removal."""


class Cleanup:
    """Runs `remove`, one call at a time."""

    def __init__(self, remove: Callable[[], Awaitable[None]]) -> None:
        self._remove = remove
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Remove what is left, and wait for the end for at most PATIENCE_SECONDS. Without effect while a removal runs."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._reported())
            await asyncio.wait({self._task}, timeout=PATIENCE_SECONDS)

    async def close(self) -> None:
        """Cancel the removal, and wait for its end for at most PATIENCE_SECONDS."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=PATIENCE_SECONDS)

    async def _reported(self) -> None:
        try:
            await self._remove()
        except Exception as error:
            report_failure("remove what transfers have left", error)
