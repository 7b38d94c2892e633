"""Kills a download service at moments that a seed chooses, and looks into the journal of its transfers."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import func, select

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.v1 import download_pb2 as pb
from services.download.tables import ObjectPartRow, PartialObjectRow
from tests.contract.download.replica import SECONDS, Replica
from tests.contract.ranged_source import RangedServer

KILLS = 2
HEADER = 1 << 20
"""Bytes of the read of the header."""


async def killed(replica: Replica, source: RangedServer, seed: int) -> pb.Download:
    """A transfer whose process is killed KILLS times, in its end. The process then runs and must be ended."""
    chance, size = random.Random(seed), len(source.data)
    source.stop_at = chance.randrange(size // 2)
    await replica.start()
    await replica.download("m1", source.url)
    for more in (chance.randrange(size // 3), size * 100):
        await asyncio.wait_for(source.stopped.wait(), SECONDS)
        await replica.end(signal.SIGKILL)
        source.go_on_until(source.sent + more)
        await replica.start()
    return await replica.ended("m1")


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """The database of a service, to look into."""
    database = open_database(settings, "download")
    yield database
    await database.close()


async def counted(database: Database) -> tuple[int, int]:
    """Number of objects and of parts in the journal."""
    async with database.read() as session:
        objects = await session.scalar(select(func.count()).select_from(PartialObjectRow))
        parts = await session.scalar(select(func.count()).select_from(ObjectPartRow))
        return objects or 0, parts or 0


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while not await condition():
            await asyncio.sleep(0.02)
