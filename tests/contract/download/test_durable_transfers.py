"""A transfer in parts goes on where a killed process stopped: few bytes are fetched again, the hash is right, nothing is left behind."""

from __future__ import annotations

import hashlib

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import OpenWith, Restart, Service
from tests.contract.download.in_parts import AGAIN, DATA, DIGEST, SIZE, nothing_left
from tests.contract.download.journal import HEADER, counted, until
from tests.contract.ranged_source import RangedServer, large_model


async def test_a_cancelled_transfer_in_parts_leaves_nothing(half: Service, journal: Database) -> None:
    await half.cancel("m1")
    await nothing_left(half, journal)


async def test_a_stopped_service_goes_on_after_its_restart(source: RangedServer, restart: Restart) -> None:
    again, _ = await restart()
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
