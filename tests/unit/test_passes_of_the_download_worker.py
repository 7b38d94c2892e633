"""A pass of the download worker: waits cost one timer, and a removal that stalls stops no start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from services.download import cleanup
from services.download.retry_backoffs import RetryBackoffs, TransferAttempt
from services.download.source_holds import SourceHolds
from services.download.source_retries import FIRST_SECONDS, SourceRetries
from services.download.tables import TransferRow, TransferState
from services.download.worker import Worker

WAITING = 50


async def nothing(*_: object) -> None:
    """FAKE: do nothing."""


def alone() -> SimpleNamespace:
    """FAKE: the claims of a process that shares its database with no other one."""
    return SimpleNamespace(release=nothing, held_elsewhere=mock.AsyncMock(return_value=[]))


class Partial:
    """FAKE: the removal of objects in parts, which stalls."""

    def __init__(self) -> None:
        self.calls = 0
        self.stalls = False

    async def remove_ended(self, _: Collection[str]) -> None:
        self.calls += 1
        if self.stalls:
            await asyncio.Event().wait()

    async def sweep(self) -> None:
        """FAKE: remove nothing."""


class Rows:
    """FAKE: the rows of the table, and the runs that have begun."""

    def __init__(self) -> None:
        self.rows: list[TransferRow] = []
        self.begun: list[str] = []
        self.holds = SourceHolds(lambda: 0.0)
        self.broadcast_progress = self.write_progress = nothing

    def add(self, name: str) -> TransferAttempt:
        row = TransferRow(
            model_uuid=name, source=f"hf:ada/{name}", attempt=1, state=TransferState.QUEUED, requested_by="ada"
        )
        self.rows.append(row)
        return TransferAttempt(name, 1)

    async def workable(self) -> list[TransferRow]:
        return self.rows

    async def run(self, attempt: TransferAttempt) -> None:
        self.begun.append(attempt.model_uuid)
        await asyncio.Event().wait()


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def partial() -> Partial:
    return Partial()


@pytest.fixture
def waits() -> RetryBackoffs:
    return RetryBackoffs(lambda: 0.0)


@pytest.fixture
async def worker(rows: Rows, partial: Partial, waits: RetryBackoffs) -> AsyncIterator[Worker]:
    made = Worker(
        cast("Any", SimpleNamespace(workable=rows.workable, claims=alone())),
        cast("Any", rows),
        cast("Any", SimpleNamespace(drop_holds=nothing, sweep=nothing)),
        cast("Any", SimpleNamespace(usable=True, close=nothing)),
        waits,
        cast("Any", partial),
        cast("Any", SimpleNamespace(give_up_old=nothing)),
    )
    yield made
    await made.close()


async def test_downloads_that_wait_have_one_timer_for_the_first_of_them(
    worker: Worker, rows: Rows, waits: RetryBackoffs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(WAITING):
        attempt = rows.add(f"m{number}")
        waits.of_source[attempt] = SourceRetries(waits.clock)
        for _ in range(1 + (number != 7)):
            waits.of_source[attempt].next_wait(None)
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    delays: list[float] = []
    call_later = loop.call_later

    def kept(delay: float, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
        handle = call_later(delay, *arguments, **named)
        if arguments[0] == worker._wake.set:
            timers.append(handle)
            delays.append(delay)
        return handle

    monkeypatch.setattr(loop, "call_later", kept)
    for _ in range(3):
        await worker._follow_rows()
    assert delays == [FIRST_SECONDS] * 3
    assert [timer.cancelled() for timer in timers] == [True, True, False]
    await worker.close()
    assert timers[-1].cancelled()


async def test_a_removal_that_stalls_stops_no_start(
    worker: Worker, rows: Rows, partial: Partial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "PATIENCE_SECONDS", 0.01)
    partial.stalls = True
    for name in ("m1", "m2"):
        rows.add(name)
        async with asyncio.timeout(10):
            await worker._follow_rows()
        await asyncio.sleep(0)
    assert rows.begun == ["m1", "m2"]
    assert partial.calls == 1, "no second removal begins beside the first"
