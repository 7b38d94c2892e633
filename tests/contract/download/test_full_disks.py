"""A download that fills the disk of the database gives its bytes back before anything has to be written, also if it is cancelled."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.kit.errors import MeshError, Reason
from llamesh.kit.objects.directory_parts import DirectoryParts
from llamesh.kit.objects.parted_file import PartedFile
from llamesh.v1 import download_pb2 as pb
from services.download import service as wiring
from services.download import worker
from tests.contract.download.conftest import OpenWith, Service
from tests.contract.download.in_parts import NEVER, PARALLEL, PART, SIZE
from tests.contract.download.journal import HEADER
from tests.contract.patience import PATIENCE, until
from tests.contract.ranged_source import RangedServer
from tests.contract.rich_status import refused
from tests.files import files_below


class Disk:
    """FAKE: the disk of the database. While `is_full` says so, nothing is written and everything is read."""

    def __init__(self) -> None:
        self.is_full: Callable[[], bool] = lambda: False
        self.refused = 0

    def wrap(self, database: Database) -> Database:
        begin = database.begin

        @asynccontextmanager
        async def limited() -> AsyncIterator[AsyncSession]:
            if self.is_full():
                self.refused += 1
                raise MeshError(Reason.ERROR_REASON_STORAGE_FULL, "the disk is full: nothing was written")
            async with begin() as session:
                yield session

        database.begin = limited  # type: ignore[method-assign]
        return database


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    found = Disk()
    opened = wiring.open_database
    monkeypatch.setattr(wiring, "open_database", lambda *arguments: found.wrap(opened(*arguments)))
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("llamesh.background.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr("llamesh.background.MAX_BACKOFF", 0.05)
    return found


@pytest.fixture
def begun(
    one_settings: Settings, open_with: OpenWith, source: RangedServer, disk: Disk
) -> Callable[[], Awaitable[Service]]:
    """Starts a service that has about half of m1."""

    async def start() -> Service:
        source.stop_at = HEADER + SIZE // 2
        service = await open_with(
            one_settings,
            http_source_hosts=(source.host,),
            download_part_bytes=PART,
            download_parallel_parts=PARALLEL,
        )
        await service.start("m1", source.url)
        await asyncio.wait_for(source.stopped.wait(), PATIENCE)
        return service

    return start


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def has_bytes(service: Service) -> bool:
    return bool(files_below(service.settings.home / "objects"))


async def test_a_cancelled_download_makes_the_room_that_its_row_needs(
    begun: Callable[[], Awaitable[Service]], disk: Disk
) -> None:
    service = await begun()
    disk.is_full = lambda: has_bytes(service)
    assert (await service.cancel("m1")).state == pb.DOWNLOAD_STATE_CANCELLED
    assert disk.refused > 0
    assert not has_bytes(service)


async def test_a_download_that_is_cancelled_on_a_disk_that_stays_full_does_not_begin_again(
    begun: Callable[[], Awaitable[Service]], source: RangedServer, disk: Disk
) -> None:
    service = await begun()
    disk.is_full = lambda: True
    with refused("STORAGE_FULL"):
        await service.cancel("m1")
    assert not has_bytes(service)
    asked = len(source.ranges)
    source.go_on_until(NEVER)
    refusals = disk.refused
    await until(lambda: disk.refused > refusals + 5)
    assert (len(source.ranges), has_bytes(service)) == (asked, False)
    disk.is_full = lambda: False
    assert (await service.state("m1")).state == pb.DOWNLOAD_STATE_CANCELLED


async def test_a_download_for_which_the_disk_is_full_gives_its_bytes_back_before_it_fails(
    begun: Callable[[], Awaitable[Service]], source: RangedServer, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await begun()
    disk.is_full = lambda: has_bytes(service)
    monkeypatch.setattr(PartedFile, "write", full)
    source.go_on_until(NEVER)
    found = await service.state("m1")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
    assert not has_bytes(service)


async def test_bytes_that_a_full_disk_could_not_give_back_are_removed_after_the_failure(
    begun: Callable[[], Awaitable[Service]], source: RangedServer, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await begun()
    remove, failures = DirectoryParts.remove, iter([OSError(errno.EIO, os.strerror(errno.EIO))])

    async def once_failing(*arguments: Any) -> None:
        for error in failures:
            raise error
        await remove(*arguments)

    monkeypatch.setattr(DirectoryParts, "remove", once_failing)
    monkeypatch.setattr(PartedFile, "write", full)
    source.go_on_until(NEVER)
    found = await service.state("m1")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "STORE_UNAVAILABLE")
    await until(lambda: not has_bytes(service))
