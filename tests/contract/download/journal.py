"""Looks into the journal of transfers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy import func, select

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from services.download.tables import ObjectPartRow, PartialObjectRow
from tests.contract.download.replica import SECONDS

HEADER = 1 << 20
"""Bytes of the read of the header."""


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
