"""Work that must be written although the database is away: what counts as an outage, and a step that is repeated until it succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from llamesh.background import backoff
from llamesh.kit.errors import MeshError
from llamesh.kit.logs import report_failure

T = TypeVar("T")


def is_outage(error: Exception) -> bool:
    """Whether a step failed because the database does not work now, so that the same step may succeed later."""
    if isinstance(error, MeshError):
        return error.code is grpc.StatusCode.UNAVAILABLE
    return isinstance(error, OSError | TimeoutError)


async def until_written(step: Callable[[], Awaitable[T]], what: str) -> T:
    """Take a step that uses the database, and repeat it with a backoff while the database does not work. `what` names it in the log."""
    failures = 0
    while True:
        try:
            return await step()
        except Exception as error:
            if not is_outage(error):
                raise
            failures += 1
            report_failure(what, error)
        await asyncio.sleep(backoff(failures))
