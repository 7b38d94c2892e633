"""What the documentation says to type works as written, in its order, and prints what it shows (`...` stands for anything)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sentence
from tests.mesh.running import ROOT, RunningMesh, running_mesh

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

PORTS = {"8080": "inference", "8200": "gateway", "8201": "contract", "8202": "download"}


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: the commands change it."""
    with running_mesh() as running:
        (running.home / "import").mkdir(parents=True, exist_ok=True)
        sentence.write(running.home / "import" / "words.gguf")
        sentence.write(running.home / "import" / "Qwen.gguf")
        yield running


@pytest.fixture(scope="module")
def shell(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's environment: an empty home, the mesh's address, the command on PATH."""
    return {
        **mesh.environment,
        "HOME": str(tmp_path_factory.mktemp("user")),
        "LLAMESH_URL": mesh.url("gateway", ""),
        "LLAMESH_INFERENCE_URL": mesh.url("inference", ""),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def fences(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def at_home(text: str, mesh: RunningMesh) -> str:
    """The same text with this mesh's ports."""
    return re.sub(r"localhost:(8080|820[012])", lambda found: f"localhost:{mesh.ports[PORTS[found[1]]]}", text)


def shown(output: str, expected: str) -> bool:
    """Whether an output is what a page shows, `...` standing for anything."""
    pattern = ".*".join(re.escape(part) for part in re.split(r"\n?\.\.\.\n?", expected.strip()))
    return re.search(pattern, output, re.DOTALL) is not None


def test_the_guide(mesh: RunningMesh, shell: dict[str, str]) -> None:
    ran = 0
    for block in fences("docs/guide.md", "console"):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, expected = step.partition("\n")
            answer = subprocess.run(
                ["bash", "-c", at_home(command, mesh)], env=shell, capture_output=True, text=True, timeout=90
            )
            assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
            assert shown(answer.stdout + answer.stderr, expected), f"{command}\n{answer.stdout}\n{answer.stderr}"
            ran += 1
    assert ran >= 14


def test_the_calls_of_the_readme(mesh: RunningMesh, shell: dict[str, str]) -> None:
    block = at_home(fences("README.md", "bash")[0], mesh)
    block = block.replace("https://models.example/Qwen.gguf", (mesh.home / "import" / "Qwen.gguf").as_uri())
    commands = [
        step.strip() for step in re.split(r"\n(?=#|curl|export)", block.strip()) if not step.strip().startswith("#")
    ]
    assert len(commands) == 10
    script = ["set -euo pipefail"]
    for command in commands:
        command = command.replace("curl ", "curl -sS --fail-with-body ", 1) if command.startswith("curl") else command
        if "/serve" in command:
            script += [f"SERVER=$({command})", 'SERVER_UUID=$(echo "$SERVER" | grep -o "[0-9a-f-]\\{36\\}" | head -1)']
        elif "stop" in command:
            last = command.replace("SERVER_UUID", "$SERVER_UUID")
        else:
            script.append(command.replace("/SERVER_UUID/", "/$SERVER_UUID/"))
            if "/status/qwen" in command:
                script.append(f"until {command} | grep -q SUCCEEDED; do sleep 0.1; done")
    script.append(last)
    answer = subprocess.run(["bash", "-c", "\n".join(script)], env=shell, capture_output=True, text=True, timeout=90)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count(sentence.SENTENCE) == 2
    assert '"state":"SERVER_STATE_STOPPED"' in answer.stdout
