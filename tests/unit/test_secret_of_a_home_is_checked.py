"""The secret in a home is created once and kept; a damaged one ends the start, because anyone could sign tokens with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh.kit.errors import StartRefused
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


def test_a_whole_secret_is_taken_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "jwt_secret").write_text("s" * 32 + "\n")
    assert kept_secret(tmp_path) == "s" * 32


def test_a_missing_secret_is_created_once(tmp_path: Path) -> None:
    made = iter(["a" * 40, "b" * 40])
    assert {kept_secret(tmp_path, lambda: next(made)) for _ in range(2)} == {"a" * 40}
