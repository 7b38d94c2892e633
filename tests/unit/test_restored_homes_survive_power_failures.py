"""A restored home and a backup are on the disk before they count, so a power failure leaves no home of empty files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamesh import __version__
from llamesh.cli.mesh import archive, restoration
from tests.unit.test_unfinished_backups_are_removed import loaded

FILES = ("config.env", "secrets/jwt_secret", "tls/server.pem")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is made durable, gets a name and loses one, in order."""
    found: list[tuple[str, str]] = []
    fsync, rename, unlink = os.fsync, Path.rename, Path.unlink

    def synced(descriptor: int) -> None:
        found.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        found.append(("rename", str(target)))
        return rename(path, target)

    def removed(path: Path, missing_ok: bool = False) -> None:
        found.append(("remove", str(path)))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "unlink", removed)
    return found


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    old = tmp_path / "old"
    for name in FILES:
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text("x")
    archive.write(old, tmp_path / "saved", __version__, old / "config.env", models=False)
    return tmp_path / "saved"


def synced_before(events: list[tuple[str, str]], last: tuple[str, str]) -> list[str]:
    """What was made durable before an event, by its place in the home that is made."""
    return [path.rpartition(".unfinished/home")[2] for kind, path in events[: events.index(last)] if kind == "sync"]


def test_every_file_and_folder_is_durable_before_a_new_home_gets_its_name(
    tmp_path: Path, saved: Path, events: list[tuple[str, str]]
) -> None:
    home = tmp_path / "home"
    restoration.restore(saved, home, __version__, loaded)
    found = synced_before(events, ("rename", str(home)))
    assert {*(f"/{name}" for name in FILES), "/secrets", "/tls", ""} <= {*found}
    assert found.index("/tls/server.pem") < found.index("/tls")
    assert events.index(("rename", str(home))) < events.index(("sync", str(tmp_path)))


def test_every_file_and_name_is_durable_before_the_mark_of_a_filled_home_goes(
    tmp_path: Path, saved: Path, events: list[tuple[str, str]]
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    restoration.restore(saved, home, __version__, loaded)
    first = next(event for event in events if event[0] == "rename")
    found = synced_before(events, first)
    assert {*(f"/{name}" for name in FILES), "/secrets", "/tls"} <= {*found}
    assert ("sync", str(home)) in events[: events.index(first)]
    filled = [kind for kind, path in events if kind == "rename" or Path(path) in {home, home / ".restore.unfinished"}]
    assert filled == ["sync", *["rename"] * 3, "sync", "remove", "sync"]


def test_the_name_of_a_backup_is_durable(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    (tmp_path / "old" / "data").mkdir(parents=True)
    archive.write(tmp_path / "old", tmp_path / "saved", __version__, tmp_path / "none", models=False)
    assert ("sync", str(tmp_path)) in events
