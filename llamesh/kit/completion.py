"""Work that is not stopped half-way: its caller may leave, the work ends first.

A transaction whose rollback is cancelled keeps its lock, and a change that was committed must be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def to_completion(work: Awaitable[T]) -> T:
    """Wait for work to the end even if cancelled, and be cancelled then. Cancelled again, the work goes on by itself."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
