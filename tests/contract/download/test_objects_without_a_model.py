"""An object that has no model is removed, but not while a process holds it, a transfer writes it, or a model has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from sqlalchemy import delete, select

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from services.download.tables import ModelFileRow, PartialObjectRow, UnownedObjectRow
from services.download.unowned_objects import UnownedObjects

KEY = f"models/{'0' * 64}-{'1' * 16}.gguf"


class DeletingStore:
    """A fake of the object store that notes which keys are deleted."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, key: str) -> None:
        self.deleted.append(key)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    opened = open_database(settings, "download")
    await opened.migrate("services.download")
    yield opened
    await opened.close()


@pytest.fixture
def store() -> DeletingStore:
    return DeletingStore()


@pytest.fixture
def objects(database: Database, store: DeletingStore) -> UnownedObjects:
    return UnownedObjects(database, cast("Any", store), "me")


async def noted(database: Database) -> list[str]:
    """The keys that are known to have no model."""
    async with database.read() as session:
        return list(await session.scalars(select(UnownedObjectRow.object_key)))


async def test_an_object_that_nobody_holds_is_removed_once(
    database: Database, store: DeletingStore, objects: UnownedObjects
) -> None:
    await objects.hold(KEY)
    await objects.sweep()
    assert store.deleted == []
    await objects.drop_holds()
    await objects.sweep()
    await objects.sweep()
    assert store.deleted == [KEY]
    assert await noted(database) == []


async def test_an_object_that_a_transfer_writes_is_removed_only_after_the_transfer(
    database: Database, store: DeletingStore, objects: UnownedObjects
) -> None:
    """The run that goes on after a kill needs the bytes, although the hold of the killed process is over."""
    await objects.hold(KEY)
    await objects.drop_holds()
    async with database.begin() as session:
        session.add(
            PartialObjectRow(
                name="upload",
                object_key=KEY,
                model_uuid="m1",
                attempt=1,
                file_number=1,
                size=1,
                part_size=1,
                etag="",
                revision="",
            )
        )
    await objects.sweep()
    assert store.deleted == []
    assert await noted(database) == [KEY]
    async with database.begin() as session:
        await session.execute(delete(PartialObjectRow))
    await objects.sweep()
    assert store.deleted == [KEY]


async def test_an_object_that_a_model_has_is_kept_and_its_note_removed(
    database: Database, store: DeletingStore, objects: UnownedObjects
) -> None:
    await objects.hold(KEY)
    await objects.drop_holds()
    async with database.begin() as session:
        session.add(
            ModelFileRow(
                model_uuid="m1", number=1, role="WEIGHTS", name="", size_bytes=1, sha256="0" * 64, object_key=KEY
            )
        )
    await objects.sweep()
    assert store.deleted == []
    assert await noted(database) == []
