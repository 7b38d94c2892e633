"""What `llamesh doctor` says to type for a part that is not well is a command that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.cli.mesh import health, running_parts
from llamesh.cli.mesh.logfiles import NAMES
from tests.unit.test_start_names_what_prevents_it import settings


def test_the_fix_of_every_part_names_a_log_of_the_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The parts of GET /health (services/gateway/health.py).
    parts = tuple(health.Part(name, "DOWN", "does not answer") for name in (*NAMES, "store", "database"))
    monkeypatch.setattr(health, "ask", lambda *_, **__: health.MeshHealth("DOWN", parts))
    fixes = {found.check: found.fix for found in running_parts.components(settings(tmp_path), "http://localhost:1")}
    assert {fix.removeprefix("llamesh logs ") for fix in fixes.values()} == set(NAMES)
    assert (fixes["store"], fixes["database"]) == ("llamesh logs download", "llamesh logs gateway")
