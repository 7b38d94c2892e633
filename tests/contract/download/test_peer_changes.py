"""What another process on the same database changed is told to the watchers and callers of this one, whatever its clock says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.objects import DirectoryStore
from llamesh.v1 import download_pb2 as pb
from services.download.catalogue import Catalogue
from services.download.changes import Changes
from services.download.peers import PeerChanges
from services.download.tables import ModelFileRow, ModelRow, TransferRow, TransferState
from services.download.transfers import TransferRequest, Transfers


@pytest.fixture
async def database(postgres: Callable[[], str], tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(Settings(home=tmp_path, database_url=SecretStr(postgres())), "download")
    yield opened
    await opened.close()


class Told:
    """What one process tells its watchers; `meanwhile` is called between its reading of the tables and what it makes of them."""

    def __init__(self, database: Database, store: DirectoryStore) -> None:
        self.changes = Changes()
        self.meanwhile: Callable[[], None] = lambda: None
        transfers = Transfers(database, lambda: NOW, "follower")
        read_all = transfers.all

        async def read_and_wait() -> Sequence[TransferRow]:
            rows = await read_all()
            self.meanwhile()
            return rows

        transfers.all = read_and_wait  # type: ignore[method-assign]
        catalogue = Catalogue(database)
        self.peers = PeerChanges(transfers, catalogue, self.changes)

    async def compare(self) -> list[pb.WatchCatalogueResponse]:
        with self.changes.watch() as watcher:
            await self.peers.compare()
            following = watcher.follow()
            found = [await anext(following) for _ in range(len(watcher.unread_models()))]
            await following.aclose()  # type: ignore[attr-defined]
        return found


@pytest.fixture
async def told(database: Database, tmp_path: Path) -> Told:
    await database.migrate("services.download")
    return Told(database, DirectoryStore(tmp_path / "objects"))


NOW = datetime(2026, 1, 1, tzinfo=UTC)
WISH = TransferRequest("m1", source="file:///a.gguf", shown_source="file:///a.gguf")


def model_row(**changes: Any) -> ModelRow:
    return ModelRow(
        model_uuid="m1",
        size_bytes=1,
        files=[
            ModelFileRow(
                model_uuid="m1", number=1, role="WEIGHTS", name="", size_bytes=1, sha256="0" * 64, object_key=""
            )
        ],
        source="",
        gguf={"architecture": "llama"},
        **changes,
    )


async def test_a_change_of_a_process_whose_clock_is_behind_is_found(database: Database, told: Told) -> None:
    """A later state with an earlier time was never told: its download ran for ever."""
    ahead = Transfers(database, lambda: NOW + timedelta(seconds=10), "ahead")
    behind = Transfers(database, lambda: NOW, "behind")
    asked = await ahead.start(WISH)
    assert [each.download.state for each in await told.compare()] == [pb.DOWNLOAD_STATE_QUEUED]
    await behind.begin("m1", asked.attempt)
    assert [each.download.state for each in await told.compare()] == [pb.DOWNLOAD_STATE_RUNNING]
    await behind.fail("m1", asked.attempt, MeshError(Reason.ERROR_REASON_CONTENT_MISMATCH, "other bytes"), (0, 0))
    assert [each.download.state for each in await told.compare()] == [pb.DOWNLOAD_STATE_FAILED]
    # The same end of a new start is news too.
    again = await behind.start(WISH)
    behind = Transfers(database, lambda: NOW - timedelta(seconds=1), "behind")
    await behind.fail("m1", again.attempt, MeshError(Reason.ERROR_REASON_CONTENT_MISMATCH, "other bytes"), (0, 0))
    assert [each.download.state for each in await told.compare()] == [pb.DOWNLOAD_STATE_FAILED]
    assert await told.compare() == []


async def test_a_model_of_a_process_whose_clock_is_behind_is_found(database: Database, told: Told) -> None:
    async with database.begin() as session:
        session.add(model_row(name="first", create_time=NOW))
    assert [each.model.name for each in await told.compare()] == ["first"]
    async with database.begin() as session:
        await session.merge(model_row(name="second", create_time=NOW - timedelta(seconds=10)))
    assert [each.model.name for each in await told.compare()] == ["second"]
    assert await told.compare() == []


async def test_a_record_that_another_process_removed_is_found(database: Database, told: Told) -> None:
    other = Transfers(database, lambda: NOW, "other")
    await other.start(WISH)
    await other.cancel("m1")
    assert [each.download.state for each in await told.compare()] == [pb.DOWNLOAD_STATE_CANCELLED]
    await other.delete("m1")
    assert [each.removed_download_uuid for each in await told.compare()] == ["m1"]
    assert await told.compare() == []


async def test_a_change_told_while_the_tables_are_read_stays(database: Database, told: Told) -> None:
    """A model that was deleted during the reading was told as present again."""
    async with database.begin() as session:
        session.add(model_row(name="first", create_time=NOW))
    assert [each.model.name for each in await told.compare()] == ["first"]
    told.meanwhile = lambda: told.changes.removed("m1")
    assert [each.removed_model_uuid for each in await told.compare()] == ["m1"]


@pytest.mark.parametrize("read", [1, 2, 3])
async def test_a_model_that_is_recorded_between_two_reads_is_found(
    database: Database, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    """Its transfer was read as ended, and the model as it was before: there was "no model" although it was never missing."""
    await Transfers(database, lambda: NOW, "other").start(WISH)
    reads, get = 0, AsyncSession.get

    async def get_after_a_record(session: AsyncSession, *arguments: Any, **options: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == read:
            async with database.begin() as other:
                transfer = await get(other, TransferRow, "m1")
                assert transfer is not None
                transfer.state = TransferState.SUCCEEDED
                other.add(model_row(name="first", create_time=NOW))
        return await get(session, *arguments, **options)

    monkeypatch.setattr(AsyncSession, "get", get_after_a_record)
    catalogue = Catalogue(database)
    assert (await catalogue.get("m1")).name == "first"
    assert reads >= read
