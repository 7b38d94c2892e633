"""`make restart` starts the members that ran before, whatever the settings say."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamesh.cli.mesh.lock import held
from llamesh.cli.mesh.settings import read_settings
from llamesh.local_mesh import Addresses
from tools import restart

ADDRESSES = Addresses("http://localhost:8200", "http://localhost:8080")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LLAMESH_QUANT", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def quant(home: Path) -> Iterator[None]:
    """The socket of a Quant service."""
    folder = read_settings(os.environ).run_dir
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "quant.sock"))
        yield
    (folder / "quant.sock").unlink()


@pytest.mark.usefixtures("quant")
def test_quant_that_runs_is_started_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(restart, "run", lambda words: calls.append(words) or 0)
    with held(home, ADDRESSES):
        assert restart.main() == 0
    assert calls == [["down"], ["up", "--detach", "--quant"]]


@pytest.mark.usefixtures("quant")
def test_a_socket_that_a_killed_mesh_has_left_counts_for_nothing(home: Path) -> None:
    assert restart.same_members() == []


@pytest.mark.usefixtures("quant")
@pytest.mark.parametrize("value", ["true", "false"])
def test_a_setting_counts_more(home: Path, value: str) -> None:
    (home / "config.env").write_text(f"LLAMESH_QUANT={value}\n", encoding="utf-8")
    with held(home, ADDRESSES):
        assert restart.same_members() == []


def test_a_wrong_setting_stops_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMESH_QUANT", "perhaps")
    monkeypatch.setattr(restart, "run", None)
    assert restart.main() == 2


def test_a_selection_of_members_is_started_again(home: Path) -> None:
    with held(home, ADDRESSES, ["gateway", "download"]):
        assert restart.same_members() == ["--only", "download,gateway"]


def test_a_mesh_that_does_not_end_is_not_started_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(restart, "run", lambda words: calls.append(words) or 5)
    assert restart.main() == 5
    assert calls == [["down"]]
