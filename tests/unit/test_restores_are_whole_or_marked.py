"""A restore into a folder that exists leaves a whole home or a marked one, which nothing starts on and the next restore makes whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from llamesh import __version__
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.mesh import archive, restoration, restore_mark, settings_file
from llamesh.cli.mesh.archive import ArchiveError
from llamesh.cli.mesh.checks import examine
from tests.unit.test_unfinished_backups_are_removed import loaded

Capture = pytest.CaptureFixture[str]
NAMES = ["config.env", "secrets", "tls"]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    old = tmp_path / "old"
    for name in ("secrets/jwt_secret", "tls/server.pem", "config.env"):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(f"LLAMESH_ADMIN_PASSWORD={old}\n")
    archive.write(old, tmp_path / "saved", __version__, old / "config.env", models=False)
    return tmp_path / "saved"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "volume"
    (made / "lost+found").mkdir(parents=True)
    monkeypatch.setenv("LLAMESH_HOME", str(made))
    return made


def names(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.name != "lost+found")


@pytest.fixture(params=range(len(NAMES)))
def half(saved: Path, home: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home whose restore was killed after so many of its entries."""
    real, moves = Path.rename, iter([None] * request.param)

    def rename(path: Path, target: Path) -> Path:
        if next(moves, "killed") == "killed":
            # As a kill, it is handled nowhere.
            raise SystemExit
        return real(path, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "rename", rename)
        with pytest.raises(SystemExit):
            restoration.restore(saved, home, __version__, loaded)
    assert len([name for name in names(home) if name in NAMES]) == request.param
    yield home
    assert not restore_mark.path_of(home).exists()


def test_the_next_restore_makes_it_whole(half: Path, saved: Path) -> None:
    restoration.restore(saved, half, __version__, loaded)
    assert names(half) == NAMES


def test_nothing_starts_on_it_or_writes_to_it(half: Path, saved: Path, tmp_path: Path, capsys: Capture) -> None:
    before = names(half)
    for words in (["up"], ["up", "--detach"], ["backup", str(tmp_path / "b")], ["tls", "init"]):
        assert run(words) == Exit.USAGE
        said = capsys.readouterr().err
        assert said.startswith(f"error: {half} is incomplete: a restore has not ended")
        assert f"hint: {restore_mark.REMEDY}" in said
        assert names(half) == before
    findings = examine({**os.environ, "LLAMA_SERVER_BIN": "/nothing", "ENVOY_BIN": "/nothing"})
    assert [(item.state, item.fix) for item in findings if item.check == "home"] == [("problem", restore_mark.REMEDY)]
    restoration.restore(saved, half, __version__, loaded)


def test_what_a_restore_does_not_make_is_never_removed(half: Path, saved: Path) -> None:
    (half / "notes").touch()
    with pytest.raises(ArchiveError, match="is not empty"):
        restoration.restore(saved, half, __version__, loaded)
    (half / "notes").unlink()
    restoration.restore(saved, half, __version__, loaded)


def test_a_failure_leaves_the_folder_as_it_was(saved: Path, home: Path) -> None:
    home.chmod(0o700)
    before = home.stat()
    saved.write_bytes(saved.read_bytes()[:-200])
    with pytest.raises(ArchiveError):
        restoration.restore(saved, home, __version__, loaded)
    assert names(home) == []
    assert (home.stat().st_ino, home.stat().st_mode) == (before.st_ino, before.st_mode)


def test_a_folder_of_another_user_is_refused_before_anything_is_written(
    saved: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("os.getuid", lambda: home.stat().st_uid + 1)
    assert run(["restore", str(saved)]) == Exit.USAGE
    assert "belongs to user" in capsys.readouterr().err
    assert names(home) == []


def test_a_full_disk_at_the_mark_leaves_no_home(saved: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(OSError, match="No space"):
        restoration.restore(saved, home, __version__, loaded)
    assert names(home) == []


def test_settings_below_the_old_home_are_moved_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "secrets").mkdir(parents=True)
    tls = f'LLAMESH_TLS_CERTIFICATE="{old}/tls/server.pem"\nLLAMESH_TLS_KEY="/etc/key"\n'
    (old / "config.env").write_text(f"# {old}\n{tls}LLAMA_SERVER_BIN={old}/bin/x\n")
    monkeypatch.setattr("llamesh.cli.mesh.tables.dump", lambda _: False)
    monkeypatch.setenv("LLAMESH_HOME", str(old))
    assert run(["backup", str(tmp_path / "b")]) == Exit.OK
    monkeypatch.setenv("LLAMESH_HOME", str(new))
    assert run(["restore", str(tmp_path / "b")]) == Exit.OK
    assert "in config.env: LLAMESH_TLS_CERTIFICATE, LLAMA_SERVER_BIN\n" in capsys.readouterr().err
    tls = f'LLAMESH_TLS_CERTIFICATE="{new}/tls/server.pem"\nLLAMESH_TLS_KEY="/etc/key"\n'
    assert (new / "config.env").read_text() == f"# {old}\n{tls}LLAMA_SERVER_BIN={new}/bin/x\n"
    assert (new / "config.env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("through", ["the link", "the folder", "another link"])
def test_settings_of_a_home_behind_a_link_are_moved_however_they_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, through: str
) -> None:
    real, link, other, new = (tmp_path / name for name in ("disk/mesh", "link", "other", "new"))
    (real / "secrets").mkdir(parents=True)
    link.symlink_to(real)
    other.symlink_to(tmp_path / "disk")
    files = {"the link": link, "the folder": real, "another link": other / "mesh"}[through]
    lines = "LLAMESH_TLS_CERTIFICATE='{0}/tls/server.pem'\nLLAMESH_TLS_KEY={0}/tls/server.key # mine\n"
    (real / "config.env").write_text(lines.format(files))
    monkeypatch.setattr("llamesh.cli.mesh.tables.dump", lambda _: False)
    monkeypatch.setenv("LLAMESH_HOME", str(link))
    assert run(["backup", str(tmp_path / "b")]) == Exit.OK
    monkeypatch.setenv("LLAMESH_HOME", str(new))
    assert run(["restore", str(tmp_path / "b")]) == Exit.OK
    assert (new / "config.env").read_text() == lines.format(new)
    assert "in config.env: LLAMESH_TLS_CERTIFICATE, LLAMESH_TLS_KEY\n" in capsys.readouterr().err


def restored_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, description: dict[str, object]) -> str:
    """The settings after a restore of a backup with another description, in terms of the old and the new home."""
    old = tmp_path / "old"
    (old / "secrets").mkdir(parents=True)
    (old / "config.env").write_text(f"LLAMESH_TLS_KEY={old}/tls/server.key\n")

    def described(manifest: archive.Manifest) -> dict[str, object]:
        fields = {**asdict(manifest), **description}
        return {name: value for name, value in fields.items() if value is not ...}

    monkeypatch.setattr(archive, "asdict", described)
    archive.write(old, tmp_path / "b", __version__, old / "config.env", models=False)
    restoration.restore(tmp_path / "b", tmp_path / "new", __version__, loaded)
    return (tmp_path / "new" / "config.env").read_text().replace(str(tmp_path), "")


@pytest.mark.parametrize("paths", [..., [], ["/srv/other"]])
def test_settings_of_a_backup_of_any_age_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: object
) -> None:
    assert restored_settings(tmp_path, monkeypatch, {"paths": paths}) == "LLAMESH_TLS_KEY=/new/tls/server.key\n"


@pytest.mark.parametrize("paths", [None, 1, {"/srv/a": 1}, "/srv/a", [1], [None], ["a"], [["/srv/a"]]])
def test_paths_that_no_mesh_writes_leave_the_settings_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: object
) -> None:
    assert restored_settings(tmp_path, monkeypatch, {"paths": paths}) == "LLAMESH_TLS_KEY=/old/tls/server.key\n"


def test_a_path_that_cannot_be_written_does_not_keep_the_others(tmp_path: Path) -> None:
    real, link = tmp_path / "real\a", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    (tmp_path / "config.env").write_text(f"LLAMESH_TLS_KEY={link}/tls/server.key\n")
    assert settings_file.paths_of(real, tmp_path / "config.env") == [str(link)]
    assert settings_file.paths_of(link, tmp_path / "config.env") == []


@pytest.mark.parametrize("other", [True, False])
def test_a_restore_says_that_the_environment_names_other_settings(
    saved: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, other: bool
) -> None:
    named = tmp_path / "mine.env" if other else home / "config.env"
    monkeypatch.setenv("LLAMESH_CONFIG", str(named))
    assert run(["restore", str(saved)]) == Exit.OK
    said = f"LLAMESH_CONFIG names {named}: the mesh reads that file instead of {home / 'config.env'}\n"
    assert (said in capsys.readouterr().err) == other
