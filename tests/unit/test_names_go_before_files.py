"""`llamesh run` takes a name of the mesh before a file of the working directory, which default names look like."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llamesh.cli.run import names_source
from llamesh.v1.model_pb2 import Model
from llamesh.v1.server_pb2 import Server

MESH: Any = SimpleNamespace(
    models=SimpleNamespace(list=lambda: [Model(model_uuid="one", name="words.gguf", aliases=["org/words"])])
)
SERVERS = [Server(server_uuid="s", model_name="served.gguf")]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("words.gguf", "served.gguf", "other.gguf", "one", "org/words"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()


@pytest.mark.parametrize("name", ["words.gguf", "org/words", "one", "served.gguf", "neither"])
def test_a_name_is_no_source_although_a_file_has_it(name: str) -> None:
    assert not names_source(MESH, name, SERVERS)


@pytest.mark.parametrize("word", ["./words.gguf", "./one", "other.gguf", "hf:org/words", "https://h/words.gguf"])
def test_paths_addresses_and_other_files_are_sources(word: str) -> None:
    assert names_source(MESH, word, SERVERS)
