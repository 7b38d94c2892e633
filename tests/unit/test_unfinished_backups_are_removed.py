"""What a killed backup or restore leaves is removed by the next one, which touches nothing of one that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamesh import __version__
from llamesh.cli.mesh import archive, restoration, unfinished
from llamesh.cli.mesh.archive import ArchiveError
from tests.unit.halfway import halfway

SECONDS = 60

CHILD = """
import sys
from pathlib import Path
from llamesh import __version__
from llamesh.cli.mesh import archive, restoration

def wait(tables, *_):
    tables.write_bytes(b"tables")
    print("waits", flush=True)
    sys.stdin.readline()
    return False

action, home, file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if action == "backup":
    archive.write(home, file, __version__, home / "config.env", models=False, dump=wait)
else:
    restoration.restore(file, home, __version__, wait)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home" / "secrets").mkdir(parents=True)
    (tmp_path / "home" / "secrets" / "jwt_secret").write_text("s" * 40)
    return tmp_path / "home"


def with_tables(file: Path) -> bool:
    file.write_bytes(b"tables")
    return False


def loaded(_: Path, __: Path) -> None:
    """Stands for PostgreSQL."""


def run(action: str, home: Path, file: Path) -> None:
    if action == "backup":
        archive.write(home, file, __version__, home / "config.env", models=False, dump=with_tables)
    else:
        restoration.restore(file, home, __version__, loaded)


@pytest.fixture(params=["backup", "restore"])
def prepared(request: pytest.FixtureRequest, home: Path) -> tuple[str, Path, Path, Path]:
    """Action, home and archive, and what the action makes."""
    action, file = str(request.param), home.parent / "saved"
    if action == "backup":
        return action, home, file, file
    run("backup", home, file)
    new = home.parent / "new"
    return action, new, file, new


def test_the_next_backup_removes_the_files_of_a_killed_one(prepared: tuple[str, Path, Path, Path]) -> None:
    action, home, file, target = prepared
    before = set(target.parent.iterdir())
    with halfway(CHILD, action, str(home), str(file)) as process:
        process.kill()
        process.wait(SECONDS)
    (left,) = set(target.parent.iterdir()) - before
    assert (left, left.stat().st_mode & 0o777) == (target.parent / f".{target.name}.unfinished", 0o700)
    run(action, home, file)
    assert set(target.parent.iterdir()) == before | {target}


def test_one_that_runs_keeps_its_files_and_the_next_is_refused(prepared: tuple[str, Path, Path, Path]) -> None:
    action, home, file, target = prepared
    folder = unfinished.path_of(target, target.parent)
    with halfway(CHILD, action, str(home), str(file)) as process:
        before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        with pytest.raises(ArchiveError, match="another backup or restore is making") as raised:
            run(action, home, file)
        assert raised.value.remedy
        assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before
        process.communicate("\n", timeout=SECONDS)
    assert process.returncode == 0
    assert target.exists()
    assert not folder.exists()


def test_a_link_in_the_place_of_the_folder_is_not_followed(home: Path) -> None:
    other = home.parent / "other"
    other.mkdir()
    (other / "kept").touch()
    unfinished.path_of(home.parent / "saved", home.parent).symlink_to(other)
    with pytest.raises(PermissionError, match="is not a folder of this user"):
        run("backup", home, home.parent / "saved")
    assert list(other.iterdir()) == [other / "kept"]


def test_a_folder_is_no_file_for_a_backup(home: Path) -> None:
    with pytest.raises(ArchiveError, match="no regular file but a folder") as raised:
        run("backup", home, home.parent)
    assert raised.value.remedy == f"name a file: {home.parent / 'mesh.backup'}"


def test_a_missing_folder_is_named_as_it_was_given(home: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        run("backup", home, home.parent / "none" / "saved")
    assert raised.value.filename == str(home.parent / "none")
