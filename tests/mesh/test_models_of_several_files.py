"""`llamesh run` and `pull` on a whole mesh: a model of several files of this disk becomes an answer in one command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from llamesh.cli.failure import Exit
from llamesh.locations import handed_over_directory, parts_directory
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh
from tests.split_models import split


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: the commands change it."""
    with running_mesh() as running:
        yield running


class Person:
    """A person on this machine who is logged in, in a folder of models."""

    def __init__(self, mesh: RunningMesh, folder: Path) -> None:
        kept = {name: value for name, value in mesh.environment.items() if not name.startswith("LLAMESH_")}
        home = {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
        self._environment = {**kept, **home, "LLAMESH_HOME": str(mesh.home), "LLAMESH_TOKEN": mesh.token}
        self._folder = folder

    def llamesh(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What a command says on pipes."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "llamesh.cli.main", *arguments],
            env=self._environment,
            cwd=self._folder,
            input="",
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )


@pytest.fixture
def person(mesh: RunningMesh, tmp_path: Path) -> Person:
    return Person(mesh, tmp_path)


def test_a_model_in_parts_is_served_from_any_of_them(mesh: RunningMesh, person: Person, tmp_path: Path) -> None:
    whole = sentence.write(tmp_path / "whole.gguf")
    parts = split(whole, tmp_path / "blobs", "words", 3)
    # As in the cache of a tool that keeps files by digest: the parts are links.
    for number, part in enumerate(parts):
        part.rename(tmp_path / "blobs" / f"{number}")
        (tmp_path / part.name).symlink_to(tmp_path / "blobs" / f"{number}")
    answered = person.llamesh("run", f"./{parts[1].name}", "Hello!")
    assert answered.stdout == f"{SENTENCE}\n", answered.stderr
    assert "serving words.gguf" in answered.stderr
    (model,) = json.loads(person.llamesh("models", "words", "-o", "json").stdout)
    assert [file["name"] for file in model["files"]] == [part.name for part in parts]
    assert not handed_over_directory(mesh.home).exists()
    (server,) = mesh.call("GET", "/status").json()["servers"]
    assert person.llamesh("rm", "words.gguf").returncode != Exit.OK, "a server uses it"
    mesh.call("DELETE", f"/stop/{server['server_uuid']}")
    mesh.call("DELETE", f"/models/{model['model_uuid']}")
    assert not [path for path in (mesh.home / "objects" / "models").iterdir() if path.is_file()]
    assert parts_directory(mesh.home).is_dir()


def test_a_missing_part_is_named_before_anything_is_handed_over(
    mesh: RunningMesh, person: Person, tmp_path: Path
) -> None:
    parts = split(sentence.write(tmp_path / "whole.gguf"), tmp_path, "half", 3)
    parts[2].unlink()
    refused = person.llamesh("pull", f"./{parts[0].name}")
    assert refused.returncode == Exit.NOT_FOUND
    assert refused.stderr.splitlines()[:2] == [
        f"error: 1 of 3 parts of the model are missing beside {parts[0].name}",
        f"  {parts[2].name}",
    ]
    assert not handed_over_directory(mesh.home).exists()
