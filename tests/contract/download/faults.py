"""Faults of the database and of the store that a test switches on: fixtures and FAKES for the tests of this folder."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from llamesh.kit.config import Settings
from llamesh.kit.database import Database
from llamesh.kit.database_failures import failure_of
from llamesh.kit.errors import MeshError, Reason
from services.download import service as wiring
from services.download import store_health, worker
from tests.contract.download.conftest import OpenWith, Service
from tests.unit.fake_s3 import FakeS3, fake_s3


class _Locked(sqlite3.OperationalError):
    """FAKE: as SQLite raises it when another process keeps its lock for too long."""

    sqlite_errorname = "SQLITE_BUSY"


def told(error: Exception) -> Exception:
    """The failure as the database tells it."""
    found = failure_of(error)
    assert found is not None
    return found


FAULTS: dict[str, Callable[[], Exception]] = {
    "full disk": lambda: MeshError(Reason.ERROR_REASON_STORAGE_FULL, "the disk is full"),
    "database away": lambda: MeshError(
        Reason.ERROR_REASON_COMPONENT_UNAVAILABLE, "no answer", {"component": "database"}
    ),
    "locked": lambda: told(OperationalError("UPDATE", {}, _Locked("database is locked"))),
    "connection lost": lambda: told(InterfaceError("UPDATE", {}, OSError("reset"), connection_invalidated=True)),
    "system": lambda: OSError(errno.EIO, os.strerror(errno.EIO)),
    "too slow": lambda: TimeoutError("no answer in time"),
}


@dataclass
class Faults:
    """Lets every operation of the service's database fail while `fault` is set, or once `after` more have succeeded."""

    fault: Callable[[], Exception] | None = None
    failed: int = 0
    after: int = 0
    steps: int = 0
    """Operations so far."""
    lost_answers: int = 0
    """So many commits that follow happen, and seem to have failed."""

    def step(self) -> None:
        self.steps += 1
        if self.fault is None:
            return
        if self.after > 0:
            self.after -= 1
            return
        self.failed += 1
        raise self.fault()

    def wrap(self, database: Database) -> Database:
        begin, read = database.begin, database.read

        @asynccontextmanager
        async def failing_begin() -> AsyncIterator[AsyncSession]:
            self.step()
            async with begin() as session:
                yield session
            if self.lost_answers:
                self.lost_answers -= 1
                self.failed += 1
                raise FAULTS["connection lost"]()

        @asynccontextmanager
        async def failing_read() -> AsyncIterator[AsyncSession]:
            self.step()
            async with read() as session:
                yield session

        database.begin, database.read = failing_begin, failing_read  # type: ignore[method-assign]
        return database


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    found = Faults()
    opened = wiring.open_database
    monkeypatch.setattr(wiring, "open_database", lambda *arguments: found.wrap(opened(*arguments)))
    # The pauses are of no interest here.
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(worker, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.05)
    monkeypatch.setattr(store_health, "CHECK_SECONDS", 0.1)
    monkeypatch.setattr("llamesh.background.FIRST_BACKOFF", 0.01)
    monkeypatch.setattr("llamesh.background.MAX_BACKOFF", 0.05)
    return found


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with fake_s3() as server:
        yield server


@pytest.fixture
def on_s3(one_settings: Settings, open_with: OpenWith, s3: FakeS3) -> Callable[[], Awaitable[Service]]:
    secrets = {"minio_access_key": SecretStr("k"), "minio_secret_key": SecretStr("s")}
    return lambda: open_with(one_settings, minio_endpoint=s3.endpoint, **secrets)
