"""Runs work to completion even if its caller is cancelled.

Needed for changes that have more than one step: after a commit the watchers must still be notified, and an object that was created must
be recorded. A single transaction does not need it: if it is cancelled, `Database.begin` rolls it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

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


async def together(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `count` tasks of the same work until all have ended. The first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
