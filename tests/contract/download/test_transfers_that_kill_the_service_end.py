"""A transfer whose process is killed again and again fails; one that makes progress, or was only beside it, goes on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from llamesh.v1 import download_pb2 as pb
from services.download.killed_runs import MAX_KILLED_RUNS
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.forks import ForkedReplica, forks
from tests.contract.download.journal import HEADER, counted, opened, until
from tests.contract.download.replica import SECONDS
from tests.contract.ranged_source import Answer, RangedServer, large_model, ranged_server

PART = 1 << 20
DATA = large_model(8 * PART, seed=7)


@pytest.fixture
async def source() -> AsyncIterator[RangedServer]:
    async with ranged_server(DATA) as server:
        yield server


@pytest.fixture
async def replica(
    tmp_path: Path, source: RangedServer, connect: Connect, as_caller: AsCaller, start_standings: StartStandings
) -> AsyncIterator[ForkedReplica]:
    environment = {
        "LLAMESH_HTTP_SOURCE_HOSTS": source.host,
        "LLAMESH_DOWNLOAD_PART_BYTES": str(PART),
        "LLAMESH_DOWNLOAD_PARALLEL_PARTS": "1",
    }
    made = ForkedReplica(tmp_path / "home", environment, connect, as_caller("ada", "manage"), start_standings)
    with forks() as made.forks:
        yield made
        await made.end(signal.SIGKILL)


async def test_a_transfer_that_makes_no_progress_before_each_kill_fails_with_the_reason(
    replica: ForkedReplica, source: RangedServer
) -> None:
    asked = asyncio.Event()

    def silent(_: web.Request, answer: Answer) -> None:
        asked.set()
        answer.body, answer.length, answer.silent = b"", len(DATA), True

    source.fault = silent
    for number in range(MAX_KILLED_RUNS):
        await replica.start()
        if not number:
            await replica.download("m1", source.url)
        await asyncio.wait_for(asked.wait(), SECONDS)
        await replica.end(signal.SIGKILL)
        asked.clear()
    await replica.start()
    found = await replica.ended("m1")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "SOURCE_UNAVAILABLE")
    assert f"was killed {MAX_KILLED_RUNS} times in a row" in found.error.message
    assert not asked.is_set()
    # A new start is a new chance.
    source.fault = lambda request, answer: None
    await replica.download("m1", source.url)
    assert (await replica.ended("m1")).state == pb.DOWNLOAD_STATE_SUCCEEDED


async def test_a_transfer_that_has_more_before_each_kill_goes_on(replica: ForkedReplica, source: RangedServer) -> None:
    async with opened(replica.settings) as journal:
        parts = 0

        async def more() -> bool:
            return (await counted(journal))[1] > parts

        for number in range(MAX_KILLED_RUNS + 1):
            source.go_on_until(source.sent + HEADER * (not number) + PART * 3 // 2)
            await replica.start()
            if not number:
                await replica.download("m1", source.url)
            await until(more)
            await replica.end(signal.SIGKILL)
            parts = (await counted(journal))[1]
    source.go_on_until(len(DATA) * 100)
    await replica.start()
    found = await replica.ended("m1")
    assert (found.state, found.error.message) == (pb.DOWNLOAD_STATE_SUCCEEDED, "")
