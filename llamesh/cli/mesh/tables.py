"""Backs up and restores the tables of a mesh whose database is PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from llamesh.cli.mesh import members
from llamesh.cli.mesh.archive import ArchiveError

MAX_SECONDS = 6 * 3600.0
"""Deadline of a dump or a restore in seconds."""


def dump(file: Path) -> bool:
    """Write the tables to a file if they are in PostgreSQL. ArchiveError if pg_dump fails.

    Returns whether the user must dump them (`commands`), because pg_dump cannot be used here.
    """
    report = _report("dump", file, dict(os.environ))
    if report["problem"] and not report["by_hand"]:
        raise ArchiveError(report["problem"], report["fix"])
    return bool(report["by_hand"])


def load(file: Path, home: Path) -> None:
    """Restore the tables of a backup into the database of DATABASE_URL, or of the settings in `home`. ArchiveError if that fails."""
    report = _report("restore", file, {**os.environ, "LLAMESH_HOME": str(home)})
    if not report["postgres"]:
        raise ArchiveError("the tables of this backup are from PostgreSQL", "set DATABASE_URL to an empty database")
    if not report["done"]:
        raise ArchiveError(report["problem"], report["fix"])


def commands() -> list[str]:
    """Return the commands that dump and restore the tables; empty if they are SQLite files."""
    return list(_report("commands", Path("llamesh.dump"), dict(os.environ))["commands"])


def _report(action: str, file: Path, environment: dict[str, str]) -> dict[str, Any]:
    try:
        answer = members.ask(
            "llamesh.kit.postgres_dump", action, str(file), environment=environment, seconds=MAX_SECONDS
        )
        report: dict[str, Any] = json.loads(answer.stdout)
    except subprocess.TimeoutExpired as error:
        raise ArchiveError(f"PostgreSQL has not finished within {MAX_SECONDS / 3600:g} h") from error
    except ValueError as error:
        last = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise ArchiveError(f"the settings cannot be read: {last}", "see `llamesh doctor`") from error
    return report
