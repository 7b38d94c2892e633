"""The state file of an engine is replaced in one step or left as it was, and nothing is left beside it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from engine.state import ReportedPhase, StateFile


def test_a_full_disk_leaves_the_state_before_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateFile(tmp_path / "engine.state", "llama.cpp", lambda: 0.0)
    state.publish(ReportedPhase.STARTING)
    before = (tmp_path / "engine.state").read_text()

    def full(path: Path, _: Path) -> Path:
        assert path.exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    state.publish(ReportedPhase.READY)
    assert [path.name for path in tmp_path.iterdir()] == ["engine.state"]
    assert (tmp_path / "engine.state").read_text() == before
