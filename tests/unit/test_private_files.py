"""A private file is written whole, for its user only, and through nothing that somebody else has put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llamesh.private_files import create_private, write_private


def test_a_private_file_replaces_one_that_others_could_read(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        write_private(path, b"new")
    finally:
        os.umask(before)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", [f"kept.{os.getpid()}.tmp", "kept"], ids=["a name that can be guessed", "its own name"]
)
def test_no_link_is_followed(tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    (tmp_path / name).symlink_to(other)
    write_private(tmp_path / "kept", b"new")
    assert other.read_text() == "untouched"
    assert not (tmp_path / "kept").is_symlink()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(tmp_path / "kept", b"new")
    assert list(tmp_path.iterdir()) == []


def test_only_a_durable_file_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write_private(tmp_path / "kept", b"old", durable=False)
    assert synced == []
    write_private(tmp_path / "kept", b"new")
    assert len(synced) == 1


def test_the_first_creator_of_a_private_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    create_private(tmp_path / "kept", b"first")
    # An empty secret after a power failure would be taken for the secret.
    assert len(synced) == 1
    create_private(tmp_path / "kept", b"second")
    assert ((tmp_path / "kept").read_bytes(), (tmp_path / "kept").stat().st_mode & 0o777) == (b"first", 0o600)
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
