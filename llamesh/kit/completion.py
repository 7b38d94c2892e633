"""Runs work to completion even if its caller is cancelled.

Needed for changes: a transaction whose rollback is cancelled keeps its lock, and after a commit the watchers must still be notified.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def to_completion(work: Awaitable[T]) -> T:
    """Await work; a cancellation takes effect only after the work has ended. After a second cancellation the work continues without its
    caller."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
