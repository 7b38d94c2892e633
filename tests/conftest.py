"""What all tests share: settings in a folder of the test's own, on SQLite and on a real PostgreSQL.

No test reaches anything that it did not start: the settings, the home and the profile of the person who
runs the tests are taken away first (tools/isolation.py proves it for a whole run).
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import signal
import subprocess
import tempfile
import time

# pytest imports it for its first warning about an object that was not closed. If the collector finds a second one meanwhile, that import
# is half done, and the test that runs fails.
import tracemalloc  # noqa: F401
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

# Tests start processes beside running gRPC servers: its fork handlers would now and then abort such a child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings
from tests.isolation import leave_the_persons_own
from tests.migrated_tables import migrate_all
from tests.one_trust_store import share_trust_store
from tests.own_postgres import postgres_wheel

MAX_DATA_BYTES = 8 << 30
"""Memory of one process of a run. A test that takes more fails. If the system ends a worker, the run hangs."""
resource.setrlimit(resource.RLIMIT_DATA, (MAX_DATA_BYTES, resource.getrlimit(resource.RLIMIT_DATA)[1]))

leave_the_persons_own(os.environ)
share_trust_store()
# A shell that starts the tests in the background makes them, and every program that they start, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The same for SIGHUP below nohup. With a handler these tests go on nevertheless, and what they start has the default action.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


def pytest_collection(session: pytest.Session) -> None:
    """Collect eleven thousand tests without looking for garbage: what a collection makes stays."""
    gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the databases of the run: hundreds of thousands of files, and minutes on a busy machine, which no test has to answer for."""
    subprocess.run(["rm", "-rf", "--", *map(str, _left)], check=False)


SECRET = "0123456789abcdef0123456789abcdef"
"""JWT_SECRET of every test."""

_numbers = itertools.count()
_left: list[Path] = []
"""Folders of ended servers of databases."""
_NOTHING_TO_LOSE = ("fsync = off", "full_page_writes = off", "synchronous_commit = off")
"""Settings of a server of databases that nobody needs after its end. A killed client loses nothing by them."""


class CreateDatabase(Protocol):
    """`create()` makes a database and returns its URL; it is empty, or has the tables of all services."""

    def __call__(self, *, migrated: bool = False) -> str: ...


@pytest.fixture(scope="session")
def postgres() -> Iterator[CreateDatabase]:
    """A real PostgreSQL from a wheel, for the whole run."""
    # Not below pytest's own folder: every pytest that starts on this machine closes that one to other users, and under
    # root the server runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        server = _postgres_server(folder)
        try:
            yield _Databases(server, folder).create
        finally:
            server.cleanup()
    finally:
        _left.append(folder)


def _postgres_server(folder: Path) -> Any:
    server = postgres_wheel().get_server(folder / "data", cleanup_mode="stop", start=False)
    deadline = time.monotonic() + 60
    while True:
        try:
            server.start()
        except (subprocess.TimeoutExpired, AssertionError):
            # The wheel gives it 10 s, too few on a busy machine. The server goes on starting: it is found when it is ready.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            for setting in _NOTHING_TO_LOSE:
                server.psql(f"ALTER SYSTEM SET {setting};")
            server.psql("SELECT pg_reload_conf();")
            return server


class _Databases:
    """The databases of a server. Those with tables are copies of one."""

    def __init__(self, server: Any, folder: Path) -> None:
        self._server = server
        self._home = folder / "home"
        self._template = ""

    def create(self, *, migrated: bool = False) -> str:
        if not migrated:
            return self._url(self._create("template1"))
        if not self._template:
            made = self._create("template1")
            migrate_all(self._home, self._url(made))
            self._template = made
        return self._url(self._create(self._template))

    def _create(self, template: str) -> str:
        name = f"test_{next(_numbers)}"
        self._server.psql(f"CREATE DATABASE {name} TEMPLATE {template};")
        return name

    def _url(self, name: str) -> str:
        return str(self._server.get_uri()).replace("/postgres?", f"/{name}?")


@pytest.fixture
def with_tables() -> bool:
    """Whether new databases have the tables of all services. A module may override it."""
    return True


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, with_tables: bool) -> str | None:
    """DATABASE_URL of the test: None is SQLite; a PostgreSQL test gets a database of its own."""
    if request.param == "sqlite":
        return None
    create: CreateDatabase = request.getfixturevalue("postgres")
    return create(migrated=with_tables)


@pytest.fixture
def settings(tmp_path: Path, database_url: str | None) -> Settings:
    """Settings of a mesh in the test's folder."""
    return Settings(
        home=tmp_path / "home",
        jwt_secret=SecretStr(SECRET),
        database_url=SecretStr(database_url) if database_url else None,
        drain_seconds=1,
    )
