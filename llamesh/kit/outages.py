"""Retries a step that uses the database during an outage, and defines which failures are an outage."""

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
    """Whether a step failed because of an outage of the database, so that a retry may succeed."""
    if isinstance(error, MeshError):
        return error.code is grpc.StatusCode.UNAVAILABLE
    return isinstance(error, OSError | TimeoutError)


async def until_written(step: Callable[[], Awaitable[T]], what: str) -> T:
    """Run a step that uses the database, and retry it with a backoff during an outage. `what` names the step in the log."""
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
