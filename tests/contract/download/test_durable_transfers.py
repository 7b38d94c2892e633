"""A transfer in parts goes on where a killed process stopped: few bytes are fetched again, the hash is right, nothing is left behind."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.kit.serving import Member
from llamesh.v1 import download_pb2 as pb
from tests.contract.conftest import AsCaller, Connect, StartStandings
from tests.contract.download.conftest import OpenWith, Service
from tests.contract.download.in_parts import AGAIN, DATA, DIGEST, PARALLEL, PART, SIZE, nothing_left
from tests.contract.download.killing import HEADER, KILLS, counted, killed, opened, until
from tests.contract.download.replica import Replica
from tests.contract.ranged_source import RangedServer, large_model

SEEDS = range(2)


def files(settings: Settings) -> list[Path]:
    return [path for path in (settings.home / "objects").rglob("*") if path.is_file()]


@pytest.fixture
def replica(
    one_settings: Settings, source: RangedServer, connect: Connect, as_caller: AsCaller, start_standings: StartStandings
) -> Replica:
    environment = {
        "LLAMESH_HTTP_SOURCE_HOSTS": source.host,
        "LLAMESH_DOWNLOAD_PART_BYTES": str(PART),
        "LLAMESH_DOWNLOAD_PARALLEL_PARTS": str(PARALLEL),
    }
    return Replica(one_settings.home, environment, connect, as_caller("ada", "manage"), start_standings)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_killed_process_costs_at_most_the_parts_that_were_on_their_way(
    replica: Replica, source: RangedServer, seed: int
) -> None:
    try:
        found = await killed(replica, source, seed)
        assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST)
        assert found.resume_count == KILLS
        assert source.sent <= len(DATA) + HEADER + KILLS * AGAIN

        async def alone() -> bool:
            return await counted(database) == (0, 0) and len(files(replica.settings)) == 1

        async with opened(replica.settings) as database:
            await until(alone)
        assert files(replica.settings)[0].read_bytes() == DATA
        assert await replica.end(signal.SIGTERM) == 0
    finally:
        await replica.end(signal.SIGKILL)


async def test_a_cancelled_transfer_in_parts_leaves_nothing(half: Service, journal: Database) -> None:
    await half.cancel("m1")
    await nothing_left(half, journal)


async def test_a_stopped_service_goes_on_after_its_restart(
    half: Service,
    source: RangedServer,
    journal: Database,
    parted: OpenWith,
    stop_member: Callable[[Member], Awaitable[None]],
) -> None:
    await stop_member(half.member)
    assert (await counted(journal))[0] == 1
    source.go_on_until(SIZE * 100)
    again = await parted()
    found = await again.state("m1")
    assert (found.state, found.sha256, found.resume_count) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST, 1)
    assert source.sent <= len(DATA) + HEADER + AGAIN


async def test_a_transfer_begins_anew_if_the_object_was_replaced(
    half: Service, source: RangedServer, journal: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.download.source_retries.FIRST_SECONDS", 0.05)
    source.data, source.etag = large_model(SIZE // 2, seed=4), '"v2"'
    source.go_on_until(SIZE * 100)
    found = await half.state("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, hashlib.sha256(source.data).hexdigest())

    async def alone() -> bool:
        return await counted(journal) == (0, 0) and len(half.stored) == 1

    await until(alone)


async def test_a_file_that_is_no_model_costs_the_read_of_its_header(
    parted: OpenWith, source: RangedServer, journal: Database
) -> None:
    source.data = b"<html>" + DATA[6:]
    service = await parted()
    found = await service.fetched("m1", source.url)
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "MODEL_INVALID")
    assert source.ranges == [(0, HEADER)]
    await nothing_left(service, journal)


async def test_parts_of_an_earlier_database_are_removed(parted: OpenWith, settings: Settings) -> None:
    orphan = settings.home / "objects" / "staging" / f"{'a' * 32}.parts"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x" * 100)
    service = await parted()
    await service.no_files()
