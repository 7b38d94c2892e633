"""A backup that was cut or changed restores nothing; one that is whole restores every file."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from llamesh import __version__
from llamesh.cli.backup import backup
from llamesh.cli.failure import CommandError
from llamesh.cli.mesh import archive, restoration
from llamesh.cli.mesh.archive import ArchiveError
from llamesh.disk_space import RESERVE_BYTES, DiskSpace
from tests.mounts import mounted

NAMES = ("contract", "controller", "gateway")


def no_tables(_: Path, __: Path) -> None:
    raise AssertionError("there are no tables of PostgreSQL")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    for folder in ("data", "secrets", "objects", "import/handed-over"):
        (made / folder).mkdir(parents=True)
    for name in NAMES:
        with closing(sqlite3.connect(made / "data" / f"{name}.db")) as database:
            database.execute("create table t (x)")
            database.execute("insert into t values (?)", (os.urandom(30_000).hex(),))
            database.commit()
    (made / "secrets" / "jwt_secret").write_text("s" * 40)
    (made / "objects" / "m").write_bytes(os.urandom(50_000))
    (made / "import" / "m.gguf").write_bytes(b"m")
    (made / "import" / "handed-over" / "m.gguf").write_bytes(b"m")
    return made


def written(home: Path, *, models: bool) -> Path:
    target = home.parent / "backup"
    archive.write(home, target, __version__, home / "config.env", models=models)
    return target


def restored(file: Path, home: Path) -> set[str]:
    restoration.restore(file, home, __version__, no_tables)
    return {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}


def member(file: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(file) as opened:
        return opened.getmember(name)


def changed(file: Path, at: int, count: int = 1) -> None:
    content = bytearray(file.read_bytes())
    for place in range(at, at + count):
        content[place] ^= 0xFF
    file.write_bytes(content)


def cut(file: Path, at: int) -> None:
    file.write_bytes(file.read_bytes()[:at])


DAMAGE: dict[str, tuple[bool, Callable[[Path], None]]] = {
    "cut between two files": (True, lambda file: cut(file, member(file, "data/gateway.db").offset)),
    "cut before the end": (True, lambda file: cut(file, member(file, archive.END).offset)),
    "cut within a file": (True, lambda file: cut(file, member(file, "objects/m").offset_data + 100)),
    "a later header changed": (True, lambda file: changed(file, member(file, "data/gateway.db").offset + 3)),
    "a database changed": (True, lambda file: changed(file, member(file, "data/gateway.db").offset_data + 9_000)),
    "the manifest changed": (True, lambda file: changed(file, file.read_bytes().index(b'"made"') + 9)),
    "the version changed": (True, lambda file: changed(file, file.read_bytes().index(b'"version"') + 12)),
    "the end changed": (True, lambda file: changed(file, member(file, archive.END).offset_data + 9)),
    "the checksum of gzip changed": (False, lambda file: changed(file, file.stat().st_size - 8, 4)),
    "cut within the checksum of gzip": (False, lambda file: cut(file, file.stat().st_size - 6)),
    "the middle inverted": (False, lambda file: changed(file, file.stat().st_size // 2, 200)),
    "cut in the middle": (False, lambda file: cut(file, file.stat().st_size // 2)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_backup_restores_nothing(home: Path, damage: str) -> None:
    models, harm = DAMAGE[damage]
    file = written(home, models=models)
    harm(file)
    with pytest.raises(ArchiveError, match="damaged") as raised:
        restoration.restore(file, home.parent / "new", __version__, no_tables)
    assert raised.value.remedy == "use another copy of the backup"
    assert sorted(path.name for path in home.parent.iterdir()) == ["backup", "home"]


@pytest.mark.parametrize("models", [True, False], ids=["tar", "gzip"])
def test_one_changed_byte_is_refused_or_changes_nothing(tmp_path: Path, models: bool) -> None:
    home = tmp_path / "home"
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "jwt_secret").write_bytes(os.urandom(40))
    before = contents(home)
    file = written(home, models=models)
    remedies: set[str] = set()
    for at in range(0, file.stat().st_size, 61 if models else 7):
        new = tmp_path / "new"
        changed(file, at)
        try:
            restoration.restore(file, new, __version__, no_tables)
        except ArchiveError as error:
            remedies.add(error.remedy)
        else:
            assert contents(new) == before, at
            shutil.rmtree(new)
        changed(file, at)
    assert remedies
    assert all(remedies)


def contents(home: Path) -> dict[str, bytes]:
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("harm", ["no database", "a damaged page"])
def test_a_damaged_database_is_named_and_the_old_backup_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    before = written(home, models=False).read_bytes()
    database = home / "data" / "gateway.db"
    if harm == "no database":
        database.write_bytes(b"x" * 4096)
    else:
        changed(database, 4096, 2000)
    monkeypatch.setenv("LLAMESH_HOME", str(home))
    monkeypatch.setattr("llamesh.cli.mesh.tables.dump", lambda _: False)
    with pytest.raises(CommandError, match=r"gateway\.db is damaged: ") as raised:
        backup(str(home.parent / "backup"), force=True)
    assert "repair it: sqlite3 " in (raised.value.hint or "")
    assert (home.parent / "backup").read_bytes() == before
    assert sorted(path.name for path in home.parent.iterdir()) == ["backup", "home"]


@pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "nothing yet"])
def test_a_home_that_is_a_link_is_restored_at_its_target(home: Path, there: bool) -> None:
    file = written(home, models=False)
    link, folder = home.parent / "link", home.parent / "disk" / "home"
    link.symlink_to(folder)
    if there:
        folder.mkdir(parents=True)
    assert "secrets/jwt_secret" in restored(file, link)
    assert (link.readlink(), folder.stat().st_mode & 0o777) == (folder, 0o700)
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("models", [True, False])
def test_a_backup_has_import_files_only_with_models_and_never_links(home: Path, models: bool) -> None:
    found = restored(written(home, models=models), home.parent / "new")
    state = {f"data/{name}.db" for name in NAMES} | {"secrets/jwt_secret"}
    assert found == state | ({"objects/m", "import/m.gguf"} if models else set())


def test_a_file_larger_than_the_free_space_is_refused_before_it_is_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "objects" / "m").write_bytes(bytes(200_000))
    file = written(home, models=True)
    free = RESERVE_BYTES + 199_999
    monkeypatch.setattr(restoration, "disk_space", lambda _: DiskSpace(free, free))
    with pytest.raises(ArchiveError, match="objects/m has 200000 bytes, and 199999 are free for models"):
        restoration.restore(file, home.parent / "new", __version__, no_tables)
    assert not (home.parent / "new").exists()


def test_the_reserve_of_the_disk_is_for_the_state_of_the_mesh(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models leave it free, and a home without models is restored into it."""
    monkeypatch.setattr(restoration, "disk_space", lambda _: DiskSpace(RESERVE_BYTES, RESERVE_BYTES))
    assert "secrets/jwt_secret" in restored(written(home, models=False), home.parent / "new")
    with pytest.raises(ArchiveError, match=r"m has \d+ bytes, and 0 are free for models \(256 MiB stay free\)"):
        restoration.restore(written(home, models=True), home.parent / "other", __version__, no_tables)


def test_a_home_that_is_a_file_system_is_restored(home: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "mounted", "300m") as new:
        (new / "lost+found").mkdir()
        assert "secrets/jwt_secret" in restored(written(home, models=True), new)
        assert [path.name for path in new.iterdir() if path.name.startswith(".")] == []
