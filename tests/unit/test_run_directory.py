"""Sockets have short paths: a long LLAMESH_HOME gets a run directory elsewhere, its own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llamesh.kit.config_loading import load_settings
from llamesh.locations import MAX_SOCKET_NAME, MAX_UNIX_SOCKET_PATH, home_directory, make_private, run_directory


def test_a_short_home_has_its_own() -> None:
    assert run_directory(Path("/srv/mesh"), {}) == Path("/srv/mesh/run")


def test_a_long_home_gets_a_short_one_that_no_other_home_shares() -> None:
    homes = [Path("/") / ("x" * 100) / name for name in ("one", "two")]
    folders = [run_directory(home, {"XDG_RUNTIME_DIR": "/run/user/1000"}) for home in homes]
    assert len(set(folders)) == 2
    for folder in folders:
        assert len(os.fsencode(folder)) + MAX_SOCKET_NAME <= MAX_UNIX_SOCKET_PATH


def test_home_is_absolute_and_never_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert home_directory({}) == Path("~/.llamesh").expanduser()
    monkeypatch.setenv("HOME", "/somewhere")
    assert load_settings().home == Path("/somewhere/.llamesh")


def test_a_private_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o777)
    assert stat.S_IMODE(make_private(folder).stat().st_mode) == 0o700
