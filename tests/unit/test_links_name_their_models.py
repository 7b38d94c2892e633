"""A symbolic link names what it leads to: caches call files by their digests, and folders by their revisions."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock
from urllib.parse import unquote, urlsplit

import pytest

from llamesh.cli.local_files import HandedOver
from llamesh.cli.matrix_file import matrix_source
from llamesh.cli.sources import fetchable, quantisable
from llamesh.client.profile import Profile
from llamesh.local_mesh import Addresses

LOCAL = Profile("http://localhost:8200")
DIGEST = "0" * 64


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / "import").mkdir(parents=True)
    monkeypatch.setenv("LLAMESH_HOME", str(home))
    monkeypatch.setattr(
        "llamesh.client.own_files.running_here", lambda _: Addresses("http://localhost:8200", "http://localhost:8080")
    )
    return home


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    path = tmp_path / "blobs" / DIGEST
    path.parent.mkdir()
    path.write_bytes(b"GGUF and more")
    return path


def path_of(handed: HandedOver | str) -> Path:
    return Path(unquote(urlsplit(handed if isinstance(handed, str) else handed.url).path))


def test_a_model_is_named_after_the_link(home: Path, tmp_path: Path, blob: Path) -> None:
    (link := tmp_path / "SmolLM2-F16.gguf").symlink_to(blob)
    with fetchable(str(link), LOCAL) as handed:
        assert path_of(handed).name == "SmolLM2-F16.gguf"
        assert path_of(handed).samefile(blob)
        assert not path_of(handed).is_symlink()


def test_a_link_of_the_import_folder_that_leads_out_of_it_is_handed_over(home: Path, blob: Path) -> None:
    (link := home / "import" / "m.gguf").symlink_to(blob)
    with fetchable(str(link), LOCAL) as handed:
        assert path_of(handed) != link
        assert path_of(handed).name == "m.gguf"
        assert not path_of(handed).is_symlink()


def test_a_matrix_is_named_after_the_link(home: Path, tmp_path: Path, blob: Path) -> None:
    (link := tmp_path / "imatrix.gguf").symlink_to(blob)
    with matrix_source(str(link), LOCAL, kept=False) as url:
        assert path_of(url).name == "imatrix.gguf"


def test_a_checkpoint_is_named_after_the_link(home: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "snapshots" / "4f3a").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (link := tmp_path / "tiny").symlink_to(folder)
    with quantisable(str(link), MagicMock(profile=LOCAL), kept=False) as url:
        assert path_of(url).name == "tiny"
        assert (path_of(url) / "config.json").read_text() == "{}"
