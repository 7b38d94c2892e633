"""A backup of a mesh on PostgreSQL has its tables, and restores them onto an empty database; or says what to type for that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.sentence import SENTENCE
from llamesh.cli.failure import Exit
from llamesh.kit.postgres_dump import Connection
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh, until
from tests.own_postgres import PASSWORD, OwnPostgres, own_postgres

ADA = {"username": "ada", "password": "long enough 1"}


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    """A PostgreSQL that asks for a password."""
    with own_postgres() as running:
        for name in ("first", "second", "third"):
            running.create(name)
        running.ask_for_passwords()
        yield running


@pytest.fixture(scope="module")
def mesh(server: OwnPostgres) -> Iterator[RunningMesh]:
    """A mesh on the first database, with a user and a server."""
    with running_mesh(DATABASE_URL=address(server, "first")) as running:
        running.add_model("sentence")
        running.serve("sentence", model_name="sentence")
        assert running.call("POST", "/users", json={**ADA, "role": "ROLE_USER"}).status_code == 200
        yield running


def address(server: OwnPostgres, database: str) -> str:
    return server.url(database, PASSWORD.replace(" ", "%20"))


def path_with(folder: Path) -> str:
    """A PATH whose first programs are those of a folder."""
    return f"{folder}:{os.environ['PATH']}"


def llamesh(environment: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "llamesh.cli.main", *words],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


@contextmanager
def another_home(**settings: str) -> Iterator[RunningMesh]:
    """A mesh that was never started and has no home yet."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))
    restored = RunningMesh(folder / "home", **settings)
    try:
        yield restored
    finally:
        restored.stop()
        shutil.rmtree(folder, ignore_errors=True)


def is_that_mesh(restored: RunningMesh, token: str) -> None:
    """Its user, its server and its tokens are those of before."""
    restored.start()
    login = restored.http.post(restored.url("gateway", "/auth/token"), json=ADA)
    assert login.status_code == 200, login.text
    restored._token = token
    (server,) = restored.call("GET", "/status").json()["servers"]
    restored.until_state(server["server_uuid"], "SERVER_STATE_READY")
    body = {"model": "sentence", "messages": [{"role": "user", "content": "Hi"}]}

    def answered() -> bool:
        asked = restored.http.post(restored.url("inference", "/v1/chat/completions"), json=body)
        return asked.status_code == 200 and SENTENCE in asked.text

    until(answered, 60, "an answer")


def test_the_tables_are_restored_onto_an_empty_database(mesh: RunningMesh, server: OwnPostgres, tmp_path: Path) -> None:
    file = tmp_path / "mesh.backup"
    programs = {"PATH": path_with(server.programs)}
    made = llamesh({**mesh.environment, **programs}, "backup", str(file), "--models")
    assert (made.returncode, "pg_dump" in made.stderr) == (Exit.OK, False), made.stderr
    with tarfile.open(file) as archive:
        assert "postgres.dump" in archive.getnames()
    second = {"DATABASE_URL": address(server, "second"), **programs}
    with another_home(**second) as restored:
        answer = llamesh(restored.environment, "restore", str(file))
        assert answer.returncode == Exit.OK, answer.stderr
        assert not (restored.home / "postgres.dump").exists()
        is_that_mesh(restored, mesh.token)
    # A database that has tables of a mesh is left as it is, and then there is no home either.
    with another_home(**second) as refused:
        answer = llamesh(refused.environment, "restore", str(file))
        assert answer.returncode == Exit.USAGE
        assert "already exists" in answer.stderr
        assert "set DATABASE_URL to an empty database" in answer.stderr
        assert not refused.home.exists()
    # Without a database the tables have nowhere to go.
    with another_home(**programs) as nowhere:
        answer = llamesh(nowhere.environment, "restore", str(file))
        assert (answer.returncode, "are from PostgreSQL" in answer.stderr) == (Exit.USAGE, True)


def test_without_pg_dump_the_commands_are_printed_and_work(
    mesh: RunningMesh, server: OwnPostgres, tmp_path: Path
) -> None:
    file = tmp_path / "mesh.backup"
    (tmp_path / "none").mkdir()
    made = llamesh({**mesh.environment, "PATH": str(tmp_path / "none")}, "backup", str(file), "--models")
    assert made.returncode == Exit.OK, made.stderr
    _, said, dump = made.stderr.splitlines()
    assert "the tables are not in it" in said
    assert PASSWORD not in made.stderr
    assert PASSWORD.replace(" ", "%20") not in made.stderr
    by_hand = {"PATH": path_with(server.programs), "PGPASSWORD": PASSWORD}
    subprocess.run(["bash", "-c", dump], env=by_hand, cwd=tmp_path, check=True)
    with another_home(DATABASE_URL=address(server, "third"), PATH=by_hand["PATH"]) as restored:
        answer = llamesh(restored.environment, "restore", str(file))
        assert answer.returncode == Exit.OK, answer.stderr
        *_, said, load = answer.stderr.splitlines()
        assert "the tables are not in this backup" in said
        subprocess.run(["bash", "-c", load], env=by_hand, cwd=tmp_path, check=True)
        is_that_mesh(restored, mesh.token)


def test_a_dump_that_fails_leaves_the_backup_of_before(mesh: RunningMesh, server: OwnPostgres, tmp_path: Path) -> None:
    file = tmp_path / "mesh.backup"
    file.write_text("the one of before")
    wrong = {**mesh.environment, "PATH": path_with(server.programs), "DATABASE_URL": server.url("first", "wrong")}
    failed = llamesh(wrong, "backup", str(file), "--force")
    assert failed.returncode == Exit.USAGE
    assert "password authentication failed" in failed.stderr
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == ("the one of before", ["mesh.backup"])


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("postgres://u:p%40ss@db/x", "postgresql://u@db/x", "p@ss"),
        (
            "postgresql+asyncpg://u:secret@db1:1,db2:2/x?sslmode=require",
            "postgresql://u@db1:1,db2:2/x?sslmode=require",
            "secret",
        ),
        ("postgresql://db/x?user=u&password=secret", "postgresql://db/x?user=u", "secret"),
        ("postgresql://u@/x?host=/run/postgresql", "postgresql://u@/x?host=%2Frun%2Fpostgresql", ""),
    ],
)
def test_no_argument_shows_a_password(url: str, shown: str, password: str) -> None:
    connection = Connection.read(url)
    assert (connection.url, connection.password) == (shown, password)
    for action in ("dump", "restore"):
        words: list[Any] = connection.arguments(action, "f")
        assert f"--dbname={shown}" in words
        assert not password or not any(password in word for word in words)
