"""A process that cannot use its database as it is ends with exit code 2 and words: the supervisor then starts nothing again."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh.kit.config import Settings
from llamesh.kit.database import open_database
from tests.contract.patience import PATIENCE

PROCESSES = {
    "gateway": "services.gateway",
    "contract": "services.contract",
    "download": "services.download",
    "quant": "services.quant",
    "controller": "controller",
}
every_process = pytest.mark.parametrize("name", PROCESSES)


def last_output(name: str, home: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LLAMESH_", "DATABASE"))}
    ended = subprocess.run(
        [sys.executable, "-m", PROCESSES[name]],
        env={**environment, "LLAMESH_HOME": str(home), "LLAMESH_DRAIN_SECONDS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "sqlalche.me" not in ended.stderr
    return ended.stderr.splitlines()[-1]


@every_process
def test_a_damaged_file_is_named_with_the_remedy(name: str, one_settings: Settings) -> None:
    file = one_settings.home / "data" / f"{name}.db"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"nothing that SQLite knows" * 1000)
    words = last_output(name, one_settings.home)
    assert words.startswith(f"{name}: ")
    assert str(file) in words
    assert "backup" in words


@every_process
def test_tables_of_a_newer_program_are_named_with_both_versions(name: str, one_settings: Settings) -> None:
    async def make() -> None:
        database = open_database(one_settings, name)
        await database.migrate(PROCESSES[name])
        await database.close()

    asyncio.run(make())
    with sqlite3.connect(one_settings.home / "data" / f"{name}.db") as connection:
        (present,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        connection.execute("UPDATE alembic_version SET version_num = 'newer_9999'")
    connection.close()
    words = last_output(name, one_settings.home)
    assert "newer_9999" in words
    assert present in words
    assert "newer program" in words
