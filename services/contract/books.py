"""Writes usage and refusals from memory to SQL: once a second, and at the end of the process.

A request must not wait for SQL, so `Ledger` and `Decisions` collect in memory. One background task calls `flush` for both. When the
process drains, the last write is tried again until it succeeds or the drain is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llamesh.kit.logs import log
from services.contract.decisions import Decisions
from services.contract.usage import Ledger

FLUSH_SECONDS = 1.0
"""How long usage and refusals stay in memory."""
LAST_PAUSE = 0.5
"""Seconds between attempts of the last write."""


class Books:
    """Writes the ledger and the decisions. `drain_left` returns the seconds that are left of the drain."""

    def __init__(self, ledger: Ledger, decisions: Decisions, drain_left: Callable[[], float]) -> None:
        self._ledger = ledger
        self._decisions = decisions
        self._drain_left = drain_left

    async def flush(self) -> None:
        """Write what is in memory."""
        await self._ledger.flush()
        await self._decisions.flush()

    async def close(self) -> None:
        """Write what is left in memory. Entries that cannot be written before the drain ends are lost and logged."""
        while (error := await self._flush_failure()) is not None:
            left = self._drain_left()
            if left <= 0:
                accounts, refusals = self._ledger.pending, self._decisions.pending
                log.error("books not written", accounts=accounts, refusals=refusals, error=str(error))
                return
            await asyncio.sleep(min(LAST_PAUSE, left))

    async def _flush_failure(self) -> Exception | None:
        try:
            await self.flush()
        except Exception as error:
            return error
        return None
