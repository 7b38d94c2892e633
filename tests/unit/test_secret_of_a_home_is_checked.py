"""The secret and the id in a home are created once and kept; a damaged one ends the start. Anyone could sign tokens with such a secret."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llamesh.cli.mesh.checks import files_of_home
from llamesh.kit.errors import StartRefused
from llamesh.kit.ownership import owner_of
from llamesh.kit.secret import kept_secret
from tests.unit.test_start_names_what_prevents_it import settings as plain_settings


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
    assert "put it back from a backup, set JWT_SECRET" in str(refused.value)
    assert "delete the file" in str(refused.value)
    assert path.read_bytes() == content


def test_a_folder_in_place_of_the_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secrets" / "jwt_secret").mkdir(parents=True)
    with pytest.raises(StartRefused, match="is no regular file but a folder"):
        kept_secret(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff", bytes(32)], ids=["empty", "no text", "zeros"])
def test_a_damaged_id_of_a_home_is_refused_with_a_remedy_that_is_possible(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "home-id"
    path.write_bytes(content)
    with pytest.raises(StartRefused, match=f"{path} is damaged: ") as refused:
        owner_of(tmp_path, "quant")
    assert "backup" not in str(refused.value)
    path.unlink()
    owner_of(tmp_path, "quant")


PLACES = {"home-id": lambda home: owner_of(home, "quant"), "secrets/jwt_secret": kept_secret}
KINDS = {
    "folder": "is no regular file but a folder",
    "pipe": "is no regular file but a pipe",
    "link": "is a link that leads nowhere",
    "loop": "cannot be read: Too many levels of symbolic links",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_is_refused_and_doctor_names_it(tmp_path: Path, place: str, kind: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to("nowhere")
        case _:
            path.symlink_to(path.name)
    words = f"{path} {KINDS[kind]}"
    with pytest.raises(StartRefused, match=words):
        PLACES[place](tmp_path)
    (finding,) = files_of_home(plain_settings(tmp_path))
    assert (finding.check, finding.state, finding.found) == ("home", "problem", words)
    assert finding.fix


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("closed", ["home", "files"])
def test_another_user_is_not_told_to_remove_what_is_whole(tmp_path: Path, closed: str) -> None:
    home = tmp_path / "home"
    kept_secret(home)
    owner_of(home, "quant")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o111)
    home.chmod(0o700 if closed == "home" else 0o755)
    (home / "secrets").chmod(0o755)
    (home / "home-id").chmod(0o600)
    code = f"""
import os
from pathlib import Path
from types import SimpleNamespace
from llamesh.cli.mesh.checks import files_of_home
os.setuid(65534)
for finding in files_of_home(SimpleNamespace(home=Path({str(home)!r}), has_secret=False)):
    print(finding.found, "|", finding.fix)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    fix = "let user 65534 read it, and enter its folders; or set LLAMESH_HOME to your own folder"
    paths = (home / "home-id", home / "secrets" / "jwt_secret")
    assert said.splitlines() == [f"{path} cannot be read: Permission denied | {fix}" for path in paths]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE])
def test_a_file_that_cannot_be_read_may_be_whole(
    tmp_path: Path, place: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("llamesh.home_files.open_regular", fail)
    with pytest.raises(StartRefused, match=f"cannot be read: {os.strerror(number)}; ") as refused:
        PLACES[place](tmp_path)
    assert "set LLAMESH_HOME to" in str(refused.value)
    assert not any(word in str(refused.value) for word in ("remove", "rm ", "delete", "new secret"))


def test_doctor_takes_a_home_that_is_whole_or_new_and_changes_nothing(tmp_path: Path) -> None:
    used = plain_settings(tmp_path)
    assert list(files_of_home(used)) == []
    assert list(tmp_path.iterdir()) == []
    owner_of(tmp_path, "quant")
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "jwt_secret").write_bytes(b"")
    (finding,) = files_of_home(used)
    assert finding.found.startswith(f"{tmp_path / 'secrets' / 'jwt_secret'} is damaged")
    assert list(files_of_home(replace(used, has_secret=True))) == []


def test_the_id_of_a_home_is_made_once(tmp_path: Path) -> None:
    assert owner_of(tmp_path, "quant") == owner_of(tmp_path, "quant")


def test_a_whole_secret_is_taken_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "jwt_secret").write_text("s" * 32 + "\n")
    assert kept_secret(tmp_path) == "s" * 32


def test_a_missing_secret_is_created_once(tmp_path: Path) -> None:
    made = iter(["a" * 40, "b" * 40])
    assert {kept_secret(tmp_path, lambda: next(made)) for _ in range(2)} == {"a" * 40}
