"""A folder that is a symbolic link serves as the folder it points to: for backups, homes, the object store and the Quant service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llamesh import __version__
from llamesh.cli.failure import Exit
from llamesh.cli.main import run
from llamesh.cli.mesh import archive, restoration
from llamesh.kit.objects import DirectoryStore, put
from services.quant import workspace
from tests.unit.objects_in_parts import CONTENT, KEY, created, write
from tests.unit.test_unfinished_backups_are_removed import loaded


@pytest.fixture
def linked(tmp_path: Path) -> Callable[[str], Path]:
    """Make a folder that is a link to another."""

    def make(name: str) -> Path:
        real, link = tmp_path / "disk" / name, tmp_path / name
        real.mkdir(parents=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(real)
        return link

    return make


async def chunks() -> AsyncIterator[bytes]:
    yield CONTENT


def test_a_backup_is_written_into_a_linked_folder(
    tmp_path: Path, linked: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "data").mkdir(parents=True)
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("llamesh.cli.mesh.tables.dump", lambda _: False)
    assert run(["backup", str(linked("backups") / "b.tar")]) == Exit.OK
    assert [path.name for path in (tmp_path / "disk" / "backups").iterdir()] == ["b.tar"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_home_is_restored_in_a_linked_folder(tmp_path: Path, linked: Callable[[str], Path], exists: bool) -> None:
    (tmp_path / "old" / "secrets").mkdir(parents=True)
    (tmp_path / "old" / "secrets" / "jwt_secret").write_text("x")
    archive.write(tmp_path / "old", tmp_path / "saved", __version__, tmp_path / "none", models=False)
    home = linked("homes") / "mesh"
    if exists:
        home.mkdir()
    restoration.restore(tmp_path / "saved", home, __version__, loaded)
    assert (tmp_path / "disk/homes/mesh/secrets/jwt_secret").read_text() == "x"


@pytest.mark.parametrize("name", ["objects", "objects/models", "objects/staging"])
async def test_an_object_store_may_have_linked_folders(
    tmp_path: Path, linked: Callable[[str], Path], name: str
) -> None:
    linked(name)
    store = DirectoryStore(tmp_path / "objects")
    await store.prepare()
    await put(store, KEY, chunks())
    assert [info.key async for info in store.scan()] == [KEY]
    await store.delete(KEY)
    parted = await (place := await created(store)).open()
    await write(parted, *range(1, place.layout.count + 1))
    staged = await parted.finish()
    await staged.publish(KEY)
    await staged.discard()
    assert (await store.local_path(KEY)).read_bytes() == CONTENT


def test_a_file_of_the_quant_service_is_finished_in_a_linked_folder(linked: Callable[[str], Path]) -> None:
    folder = linked("quant")
    (folder / "unfinished").write_text("x")
    workspace.finish(folder / "unfinished", folder / "whole")
    assert [path.name for path in folder.iterdir()] == ["whole"]
