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
from tests.mesh.pages import fences, shown, steps
from tests.mesh.running import COMMAND_SECONDS, ROOT, RunningMesh, running_mesh

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

PORTS = {"8080": "inference", "8200": "gateway", "8201": "contract", "8202": "download"}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
)


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: the commands change it."""
    with running_mesh() as running:
        (running.home / "import").mkdir(parents=True, exist_ok=True)
        for name in ("Qwen", "Phi"):
            sentence.write(running.home / "import" / f"{name}.gguf")
        yield running


@pytest.fixture(scope="module")
def shell(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A second terminal after `make run`: the mesh is in ~/.llamesh, and no setting of it is known here."""
    user = tmp_path_factory.mktemp("user")
    (user / ".llamesh").symlink_to(mesh.home)
    kept = {name: value for name, value in mesh.environment.items() if not name.startswith("LLAMESH_")}
    return {
        **kept,
        "HOME": str(user),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def at_home(text: str, mesh: RunningMesh) -> str:
    """The same text with this mesh's ports."""
    return re.sub(r"localhost:(8080|820[012])", lambda found: f"localhost:{mesh.ports[PORTS[found[1]]]}", text)


def typed(command: str, mesh: RunningMesh, shell: dict[str, str], expected: str = "...") -> None:
    """Run a command as a user types it; it succeeds and prints what is expected."""
    answer = subprocess.run(
        ["bash", "-c", at_home(command, mesh)],
        env=shell,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert answer.returncode == 0, f"{command}\n{answer.stdout}\n{answer.stderr}"
    assert shown(answer.stdout + answer.stderr, expected), f"{command}\n{answer.stdout}\n{answer.stderr}"


@pytest.mark.parametrize(("page", "least"), [("docs/guide.md", 14), ("docs/from-the-reference-deployment.md", 5)])
def test_the_commands_of_a_page(mesh: RunningMesh, shell: dict[str, str], page: str, least: int) -> None:
    commands = [step for block in fences(page, "console") for step in steps(block)]
    assert len(commands) >= least
    for command, expected in commands:
        if "| jq " in command and shutil.which("jq") is None:
            continue
        typed(command, mesh, shell, expected)


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
    answer = subprocess.run(
        ["bash", "-c", "\n".join(script)], env=shell, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stdout.count(sentence.SENTENCE) == 2
    assert '"state":"SERVER_STATE_STOPPED"' in answer.stdout


def test_the_command_of_the_readme(mesh: RunningMesh, shell: dict[str, str]) -> None:
    block = next(block for block in fences("README.md", "console") if "llamesh login" in block)
    block = block.replace("https://models.example/Phi.gguf", (mesh.home / "import" / "Phi.gguf").as_uri())
    # A terminal asks for the password; here it comes by a pipe.
    block = block.replace("llamesh login admin", "echo admin | llamesh login admin --password-stdin")
    commands = [command for command, _ in steps(block)]
    assert len(commands) == 7
    for command in commands[:-2]:
        typed(command, mesh, shell)
    for command in commands[-2:]:
        typed(command, mesh, shell, sentence.SENTENCE)


def test_the_python_of_the_readme(mesh: RunningMesh, shell: dict[str, str]) -> None:
    (snippet,) = fences("README.md", "python")
    snippet = at_home(snippet, mesh).replace("SmolLM2-135M-Instruct", "words")
    answer = subprocess.run(
        [sys.executable, "-c", snippet], env=shell, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert answer.returncode == 0, answer.stderr
    assert sentence.SENTENCE in answer.stdout


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / page).read_text())
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []
