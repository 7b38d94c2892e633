"""Runs that were interrupted are queued before anything else, and a kill is counted once, also if the store is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.database import Database, open_database
from llamesh.kit.errors import MeshError, Reason
from services.download.interrupted_runs import InterruptedRuns
from services.download.tables import ObjectPartRow, PartialObjectRow, TransferRow, TransferState
from services.download.transfer_requests import TransferRequest
from services.download.transfers import Transfers

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AWAY = MeshError(Reason.ERROR_REASON_STORE_UNAVAILABLE, "no answer")


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = open_database(Settings(home=tmp_path / "home"), "download")
    await opened.migrate("services.download")
    yield opened
    await opened.close()


class Process:
    """One life of a process: what it tells its watchers, and which rows it has queued."""

    def __init__(self, database: Database) -> None:
        self.transfers = Transfers(database, lambda: NOW, "me")
        self.told: list[TransferRow] = []
        self._interrupted = InterruptedRuns(self.transfers, cast("Any", SimpleNamespace(broadcast=self.told.append)))

    async def look(self, *running: str) -> TransferRow:
        """One pass of the worker, with tasks for `running`; the row of m1."""
        (found,) = await self._interrupted.queue(await self.transfers.workable(), running)
        return found


async def begun(process: Process) -> TransferRow:
    row = await process.transfers.find("m1")
    row = row or await process.transfers.start(TransferRequest("m1", "https://models.test/m", "m", requested_by="ada"))
    begins = await process.transfers.begin("m1", row.attempt)
    assert begins is not None
    return begins


async def test_a_killed_run_is_queued_and_counted_before_the_store_is_awaited(database: Database) -> None:
    row = await begun(Process(database))
    for kills in (1, 2):
        process = Process(database)
        found = await process.look()
        assert (found.state, found.claimed_by, found.killed_runs) == (TransferState.QUEUED, "", kills)
        assert [each.model_uuid for each in process.told] == ["m1"]
        await process.transfers.requeue("m1", row.attempt, AWAY)
        again = await process.look()
        assert (again.killed_runs, again.error_reason) == (kills, "STORE_UNAVAILABLE")
        assert (await begun(process)).resume_count == kills


async def test_a_run_of_this_process_whose_end_was_not_written_was_not_killed(database: Database) -> None:
    process = Process(database)
    await begun(process)
    # It has followed its rows once, so it has begun this run itself.
    await process.look("m1")
    found = await process.look()
    assert (found.state, found.killed_runs, found.resume_count) == (TransferState.QUEUED, 0, 1)


async def test_a_released_run_is_queued_and_was_not_killed(database: Database) -> None:
    first = Process(database)
    await begun(first)
    await first.transfers.claims.release()
    found = await Process(database).look()
    assert (found.state, found.killed_runs) == (TransferState.QUEUED, 0)


async def test_a_transfer_that_is_queued_or_begins_again_has_its_kept_bytes(database: Database) -> None:
    row = await begun(Process(database))
    async with database.begin() as session:
        session.add(PartialObjectRow(
            name="o", model_uuid="m1", attempt=row.attempt, file_number=1, size=100, part_size=40, etag="", revision=""
        ))  # fmt: skip
        session.add(ObjectPartRow(name="o", number=1, tag=""))
    process = Process(database)
    assert (await process.look()).bytes_done == 40
    assert (await begun(process)).bytes_done == 40
    queued = await process.transfers.requeue("m1", row.attempt, AWAY)
    assert queued is not None
    assert queued.bytes_done == 40
