"""The secret and the id in a home are created once and kept; a damaged one ends the start. Anyone could sign tokens with such a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.kit.errors import StartRefused
from llamesh.kit.ownership import owner_of
from llamesh.kit.secret import kept_secret


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b" " * 64, b"s" * 31, bytes(64), b"s" * 40 + bytes(24), b"\xff" * 64],
    ids=["empty", "one line end", "spaces", "cut", "zeros", "zeros at the end", "no text"],
)
def test_a_damaged_secret_is_refused_with_the_remedy_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secrets" / "jwt_secret"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StartRefused) as refused:
        kept_secret(tmp_path)
    assert str(path) in str(refused.value)
    assert "Put it back from a backup, set JWT_SECRET" in str(refused.value)
    assert "delete the file" in str(refused.value)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_the_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets" / "jwt_secret").mkdir(parents=True)
    with pytest.raises(StartRefused, match="is damaged"):
        kept_secret(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff", bytes(32), None], ids=["empty", "no text", "zeros", "folder"])
def test_a_damaged_id_of_a_home_is_refused_with_the_remedy(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "home-id"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(StartRefused, match=f"{path} is damaged: put it back from a backup, or remove it"):
        owner_of(tmp_path, "quant")


def test_the_id_of_a_home_is_made_once(tmp_path: Path) -> None:
    assert owner_of(tmp_path, "quant") == owner_of(tmp_path, "quant")


def test_a_whole_secret_is_taken_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "jwt_secret").write_text("s" * 32 + "\n")
    assert kept_secret(tmp_path) == "s" * 32


def test_a_missing_secret_is_created_once(tmp_path: Path) -> None:
    made = iter(["a" * 40, "b" * 40])
    assert {kept_secret(tmp_path, lambda: next(made)) for _ in range(2)} == {"a" * 40}
