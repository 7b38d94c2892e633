"""How a stopped transfer ended is told to watchers, whatever else ends or fails while its row is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamesh.kit.errors import MeshError, Reason
from services.download.changes import Changes
from services.download.retry_backoffs import RetryBackoffs
from services.download.source_holds import SourceHolds
from services.download.store_health import StoreHealth
from services.download.tables import TransferRow, TransferState
from services.download.transfer_run import TransferRuns
from services.download.worker import Worker

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PAIRS = 50


class Transfers:
    """FAKE: rows of cancelled transfers; while that of one is read for the first time, the transfer `<it>-later` ends too."""

    def __init__(self) -> None:
        self.worker: Worker
        self.failures: list[Exception] = []
        self._read: set[str] = set()

    async def find(self, model_uuid: str) -> TransferRow:
        await asyncio.sleep(0)
        if not model_uuid.endswith("-later") and model_uuid not in self._read:
            self._read.add(model_uuid)
            self.worker._stopped.add(f"{model_uuid}-later")
        if self.failures:
            raise self.failures.pop()
        fields = dict.fromkeys(("name", "source", "shown_source", "sha256", "error_reason", "error_message"), "")
        numbers = dict.fromkeys(("attempt", "resume_count", "bytes_done", "bytes_total"), 0)
        row: dict[str, Any] = fields | numbers
        return TransferRow(
            model_uuid=model_uuid, state=TransferState.CANCELLED, create_time=NOW, update_time=NOW, **row
        )

    async def workable(self) -> Sequence[TransferRow]:
        return []


@pytest.fixture
def transfers() -> Transfers:
    return Transfers()


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
def worker(transfers: Transfers, changes: Changes) -> Worker:
    unused = cast("Any", None)
    waits = RetryBackoffs(time.monotonic)
    fetches = cast("Any", SimpleNamespace(holds=SourceHolds(time.monotonic)))
    runs = TransferRuns(cast("Any", transfers), unused, unused, fetches, changes, waits, None)
    transfers.worker = Worker(
        cast("Any", transfers), runs, unused, StoreHealth(unused, time.monotonic), waits, None, unused
    )
    return transfers.worker


async def test_transfers_that_stop_while_others_are_told_are_told_too(worker: Worker, changes: Changes) -> None:
    """The element that was removed afterwards could be another one: about half of the later ones were lost."""
    for number in range(PAIRS):
        worker._stopped.add(f"m{number}")
        await worker._follow_rows()
    names = [f"m{number}{end}" for number in range(PAIRS) for end in ("", "-later")]
    assert [name for name in names if changes.last_download(name) is None] == []


async def test_a_transfer_whose_row_cannot_be_read_is_told_later(
    worker: Worker, transfers: Transfers, changes: Changes
) -> None:
    worker._stopped.add("m1")
    away = MeshError(Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "no answer", {"component": "database"})
    transfers.failures.append(away)
    with pytest.raises(MeshError):
        await worker._follow_rows()
    await worker._follow_rows()
    assert changes.last_download("m1") is not None
