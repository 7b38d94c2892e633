"""`make db-status` and `make db-shell` look alike on SQLite and on PostgreSQL, and change nothing."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.contract.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = "CREATE TABLE {0}users (username TEXT, role TEXT)"
ROW = "INSERT INTO {0}users VALUES ('ada', 'admin')"


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Settings that lead to a table of the gateway with one user."""
    home = {"LLAMESH_HOME": str(tmp_path)}
    if request.param == "sqlite":
        (tmp_path / "data").mkdir()
        with sqlite3.connect(tmp_path / "data" / "gateway.db") as connection:
            connection.execute(TABLE.format(""))
            connection.execute(ROW.format(""))
        connection.close()
        return home
    postgres: Callable[[], str] = request.getfixturevalue("postgres")
    url = postgres()
    asyncio.run(filled(url))
    return {**home, "DATABASE_URL": url}


async def filled(url: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in ("CREATE SCHEMA gateway", TABLE.format("gateway."), ROW.format("gateway.")):
        await connection.execute(statement)
    await connection.close()


def tool(settings: dict[str, str], command: str, sql: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/database.py", command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": settings["LLAMESH_HOME"], "PYTHONPATH": str(ROOT), **settings},
        input=sql,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def test_tables_are_counted(settings: dict[str, str]) -> None:
    found = tool(settings, "status")
    assert (found.returncode, found.stdout.split()) == (0, ["table", "rows", "gateway.users", "1"]), found.stderr


def test_statements_are_answered_and_nothing_is_changed(settings: dict[str, str]) -> None:
    found = tool(
        settings, "shell", "DELETE FROM gateway.users;\nSELECT nonsense;\nSELECT username,\n role FROM gateway.users"
    )
    assert found.returncode == 0
    assert found.stdout.split() == ["username", "role", "ada", "admin"]
    assert found.stderr.count("error: ") == found.stderr.count("hint: `make db-status` lists the tables") == 2
    assert "read" in found.stderr.splitlines()[0]


def test_missing_tables_and_wrong_settings_are_reported(tmp_path: Path) -> None:
    nothing = tool({"LLAMESH_HOME": str(tmp_path)}, "status")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "there are no tables" in nothing.stderr
    wrong = tool({"LLAMESH_HOME": str(tmp_path), "JWT_SECRET": "short"}, "status")
    assert wrong.returncode == 2
    assert "JWT_SECRET" in wrong.stderr
    assert "Traceback" not in wrong.stderr
