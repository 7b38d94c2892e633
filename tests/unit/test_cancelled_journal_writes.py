"""The journal of a transfer that is cancelled at any moment leaves the database free for others."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from llamesh.kit.objects import DirectoryStore, PartLayout
from services.download.partial_objects import PartialObjects
from services.download.tables import PartialObjectRow

ROUNDS = 40
SECONDS = 0.01
"""About as long as a write takes."""


def row(name: str) -> PartialObjectRow:
    layout = PartLayout(8, 4)
    return PartialObjectRow(
        name=name,
        model_uuid="m1",
        attempt=1,
        upload="",
        size=layout.size,
        part_size=layout.part_size,
        etag="",
        revision="",
    )


async def test_a_cancelled_write_does_not_keep_the_lock_of_a_sqlite_file(tmp_path: Path) -> None:
    """The service could not start again in the same process, because its migration waited for the lock."""
    chance = random.Random(7)
    settings = Settings(home=tmp_path / "home")
    mine, others = open_database(settings, "download"), open_database(settings, "download")
    await mine.migrate("services.download")
    objects = PartialObjects(mine, DirectoryStore(tmp_path / "objects").parts)
    async with mine.begin() as session:
        session.add(row("first"))
    for number in range(ROUNDS):
        task = asyncio.create_task(objects.record("first", number, ""))
        await asyncio.sleep(chance.random() * SECONDS)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        async with others.begin() as session:
            session.add(row(f"later{number}"))
    await others.close()
    await mine.close()
