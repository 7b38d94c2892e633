"""The SDK links files that its mesh may not read into the mesh's import folder, if the mesh runs on this machine."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from llamesh.client.own_files import hand_over
from llamesh.local_mesh import Addresses
from llamesh.locations import handed_over_directory
from llamesh.v1 import download_pb2

URL = "http://localhost:8200"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLAMESH_HOME", str(tmp_path / "home"))
    here = Addresses(URL, "http://localhost:8080")
    monkeypatch.setattr("llamesh.client.own_files.running_here", lambda _: here)
    return tmp_path / "home"


def request_for(tmp_path: Path) -> download_pb2.StartDownloadRequest:
    for name in ("a b.gguf", "style.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    adapter = download_pb2.AdapterSource(name="style", source=(tmp_path / "style.gguf").as_uri())
    source = (tmp_path / "a b.gguf").as_uri()
    return download_pb2.StartDownloadRequest(model_uuid="m1", source=source, projector="none", adapters=[adapter])


def path_of(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))


def test_files_are_linked_and_the_same_files_are_the_same_source(home: Path, tmp_path: Path) -> None:
    first, second = request_for(tmp_path), request_for(tmp_path)
    os.utime(tmp_path / "a b.gguf", (1, 1))
    os.utime(tmp_path / "style.gguf", (1, 1))
    assert hand_over(first, URL)
    assert hand_over(second, URL)
    assert first == second
    assert path_of(first.source).samefile(tmp_path / "a b.gguf")
    assert path_of(first.source).is_relative_to(handed_over_directory(home))
    assert path_of(first.adapters[0].source).samefile(tmp_path / "style.gguf")
    assert first.projector == "none"


def test_files_of_another_disk_are_not_copied(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", other_disk)
    request = request_for(tmp_path)
    assert not hand_over(request, URL)
    assert request == request_for(tmp_path)


@pytest.mark.parametrize("url", ["http://mesh.example:8200", "http://localhost:9999"])
def test_a_mesh_that_is_not_this_one_gets_nothing(home: Path, tmp_path: Path, url: str) -> None:
    assert not hand_over(request_for(tmp_path), url)
    assert not home.exists()


def test_a_missing_file_is_not_handed_over(home: Path, tmp_path: Path) -> None:
    request = request_for(tmp_path)
    (tmp_path / "style.gguf").unlink()
    assert not hand_over(request, URL)
