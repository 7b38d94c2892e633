"""An update leaves the object of its old bytes to another model that is just getting it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from services.download.publications import Publications, PublishedFile, PublishedObject
from services.download.sources import FileRole
from services.download.tables import ModelFileRow, TransferRow, TransferState
from services.download.transfer_requests import TransferRequest
from services.download.transfers import Transfers
from services.download.unowned_objects import UnownedObjects

OLD, NEW = "1" * 64, "2" * 64
FACTS: dict[str, dict[str, Any]] = {"gguf": {}, "source_facts": {}}


class Store:
    """FAKE: a store that notes what it removes."""

    def __init__(self) -> None:
        self.removed: list[str] = []

    async def delete(self, key: str) -> None:
        self.removed.append(key)


@pytest.fixture
async def database(postgres: Callable[[], str], tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(Settings(home=tmp_path, database_url=SecretStr(postgres())), "download")
    await opened.migrate("services.download")
    yield opened
    await opened.close()


def now() -> datetime:
    return datetime.now(UTC)


async def begun(database: Database, model_uuid: str, *, update: bool = False) -> TransferRow:
    transfers = Transfers(database, now, "me")
    request = TransferRequest(model_uuid, "https://a.example/m.gguf", "https://a.example/m.gguf", "m", update=update)
    row = await transfers.start(request)
    begun = await transfers.begin(model_uuid, row.attempt)
    assert begun is not None
    return begun


def published(sha256: str, *, shared: bool) -> list[PublishedFile]:
    return [PublishedFile(FileRole.WEIGHTS, "m", PublishedObject(f"key-{sha256}", sha256, 4, shared=shared), "", None)]


async def test_a_model_gets_the_object_that_an_update_leaves(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    objects = UnownedObjects(database, store, "me")  # type: ignore[arg-type]
    publications = Publications(database, Mock(), objects, now, "me", Mock())
    await objects.hold(f"key-{OLD}")
    await publications.record(published(OLD, shared=False), FACTS, await begun(database, "m"))
    update, other = await begun(database, "m", update=True), await begun(database, "n")
    await objects.hold(f"key-{NEW}")
    chosen, goes_on = asyncio.Event(), asyncio.Event()
    key_for = Publications._key_for

    async def held(publications: Publications, session: AsyncSession, publication: PublishedObject) -> str:
        key = await key_for(publications, session, publication)
        if publication.sha256 == OLD:
            chosen.set()
            await goes_on.wait()
        return key

    monkeypatch.setattr(Publications, "_key_for", held)
    getting = asyncio.create_task(publications.record(published(OLD, shared=True), FACTS, other))
    await chosen.wait()
    updating = asyncio.create_task(publications.record(published(NEW, shared=False), FACTS, update))
    await asyncio.wait({updating}, timeout=1)
    goes_on.set()
    assert None not in await asyncio.gather(getting, updating)
    async with database.read() as session:
        keys = set((await session.scalars(select(ModelFileRow.object_key))).all())
        states = set((await session.scalars(select(TransferRow.state))).all())
    assert (keys, store.removed, states) == ({f"key-{OLD}", f"key-{NEW}"}, [], {TransferState.SUCCEEDED})
