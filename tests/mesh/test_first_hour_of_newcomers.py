"""The first hour of two kinds of users, step by step as they type it: from ollama, and with the Python SDK."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from tests.mesh.running import RunningMesh, running_mesh

SDK = """
import sys
from llamesh import Client

with Client() as mesh:
    model = mesh.models.pull(sys.argv[1]).wait(timeout=60)
    server = mesh.servers.wait_ready(mesh.servers.serve(model, name="sdk"), timeout=60)
    print(server.model_name, server.ready_replicas)
    mesh.servers.stop(server)
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: newcomers change it."""
    with running_mesh() as running:
        yield running


@pytest.fixture
def user(mesh: RunningMesh, tmp_path: Path) -> dict[str, str]:
    """A new user of this machine, who knows where the mesh is and nothing else."""
    return {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLAMESH_HOME": str(mesh.home)}


def typed(user: dict[str, str], folder: Path, *words: str, stdin: str = "") -> str:
    """What a command prints; it must succeed."""
    answer = subprocess.run(
        [sys.executable, "-P", *words],
        env=user,
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_from_ollama(user: dict[str, str], tmp_path: Path) -> None:
    def llamesh(*words: str, stdin: str = "") -> str:
        return typed(user, tmp_path, "-m", "llamesh.cli.main", *words, stdin=stdin)

    sentence.write(tmp_path / "tiny.gguf")
    llamesh("login", "admin", "--password-stdin", stdin="admin\n")
    assert llamesh("run", "./tiny.gguf", "Why is the sky blue?").strip() == SENTENCE
    assert "tiny.gguf" in llamesh("list")
    assert "READY" in llamesh("ps")
    assert "Conditions" in llamesh("show", "tiny.gguf")
    assert llamesh("run", "tiny.gguf", "summarise this", stdin="a long text").strip() == SENTENCE
    llamesh("stop", "tiny.gguf")
    llamesh("rm", "tiny.gguf")
    assert llamesh("list", "-o", "json") == "[]\n"


def test_with_the_python_sdk(mesh: RunningMesh, user: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "first.py"
    script.write_text(SDK)
    file = mesh.home / "import" / "sdk.gguf"
    file.parent.mkdir(exist_ok=True)
    sentence.write(file)
    assert typed({**user, "LLAMESH_TOKEN": mesh.token}, tmp_path, str(script), str(file)) == "sdk 1\n"
