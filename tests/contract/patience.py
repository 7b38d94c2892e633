"""Waits of tests on a busy machine: for a condition, and for a healthy database that is slower than the test's deadline.

No test proves anything with PATIENCE: it only ends a test whose condition never becomes true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from llamesh.kit.outages import is_outage

PATIENCE = 60.0
"""Seconds that a test waits for something that must happen. A process may get no processor for seconds at any point."""
CALM_SECONDS = 60.0
"""LLAMESH_DATABASE_SECONDS of tests that never take the database away: the largest value, so that a busy machine is no outage."""
T = TypeVar("T")


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition of this process."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def available(step: Callable[[], Awaitable[T]]) -> T:
    """Run an idempotent step, and repeat it while it is refused because of the database or a process that ends.

    Tests of outages set a short deadline for operations. It also applies before and after the outage, when a busy machine may exceed it;
    the refused step may have happened nevertheless.
    """
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await step()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            except Exception as error:
                if not is_outage(error):
                    raise
            await asyncio.sleep(0.1)
