"""The wheel alone, installed into an empty environment, is the product: it runs the demo as `make run` does, and a user's own model.

It needs a package index. The extra `demo` is not installed: it is for tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine import demo, sentence
from tests.mesh.running import ROOT
from tests.ports import free_ports
from tests.processes import mesh_processes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MANIFEST = """
apiVersion: llamesh.dev/v1alpha1
kind: Contract
metadata: {name: team}
spec: {maxConcurrentRequests: 4}
"""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and the home directory of a user who has nothing yet."""

    programs: Path
    user: Path
    settings: dict[str, str]

    def run(self, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the user's home directory."""
        return run(*words, where=self.user, stdin=stdin, **self.settings)

    def llamesh(self, *words: str, stdin: str = "") -> str:
        """Run the command; what it printed."""
        done = self.run("llamesh", *words, stdin=stdin)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def run(*words: str | Path, where: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    dropped = ("LLAMESH_", "PYTHON", "VIRTUAL", "XDG_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return subprocess.run(
        list(map(str, words)),
        cwd=where,
        env=kept | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def installed() -> Iterator[Installed]:
    """The wheel in an environment outside the checkout, with the default LLAMESH_HOME. The path is short: sockets lie below it."""
    folder = Path(tempfile.mkdtemp(prefix="wheel-"))
    programs, user = folder / "env" / "bin", folder / "user"
    user.mkdir()
    ports = dict(zip(("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD"), map(str, free_ports(4)), strict=True))
    settings = {f"LLAMESH_{name}_PORT": port for name, port in ports.items()}
    # Not the PATH of this process: pip asks a Rust compiler for its version, which leaves files of its own in HOME.
    settings |= {"HOME": str(user), "PATH": f"{programs}:/usr/bin:/bin"}
    found = Installed(programs, user, settings)
    try:
        built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, where=folder)
        assert built.returncode == 0, built.stderr
        (wheel,) = folder.glob("llamesh-*.whl")
        assert run(sys.executable, "-m", "venv", folder / "env", where=folder).returncode == 0
        done = run(programs / "pip", "install", "-q", f"{wheel}[mesh,engine]", where=folder)
        assert done.returncode == 0, done.stderr
        yield found
    finally:
        if (programs / "llamesh").exists():
            found.run("llamesh", "down")
        left = mesh_processes(user / ".llamesh")
        shutil.rmtree(folder, ignore_errors=True)
        assert left == []


def test_the_wheel_runs_the_demo_in_an_empty_environment(installed: Installed) -> None:
    shown = installed.llamesh("up", "--demo", "--detach")
    assert re.search(rf"^  {demo.NAME}  .", shown, re.MULTILINE), shown
    assert "answered" in shown
    assert f":{installed.settings['LLAMESH_INFERENCE_PORT']}/v1" in shown
    installed.llamesh("doctor")


def test_the_wheel_serves_a_users_own_model_and_is_uninstalled_without_a_trace(installed: Installed) -> None:
    assert installed.run("python", "-c", "import gguf").returncode != 0, "the extra demo is not there"
    sentence.write(installed.user / "model.gguf")
    (installed.user / "mesh.yaml").write_text(MANIFEST)
    own = set(installed.user.iterdir())
    installed.llamesh("up", "--detach")
    installed.llamesh("login", "admin", "--password-stdin", stdin="admin")
    assert sentence.SENTENCE in installed.llamesh("run", "./model.gguf", "Hello!")
    installed.llamesh("apply", "-f", "mesh.yaml")
    assert set(installed.user.iterdir()) > own

    page = (ROOT / "docs" / "guide" / "operations.md").read_text(encoding="utf-8")
    (commands,) = re.findall(r"## Uninstall\n\n```bash\n(.*?)```", page, re.DOTALL)
    # pip asks before it removes.
    done = installed.run("bash", "-e", "-c", commands, stdin="y\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (installed.programs / "llamesh").exists()
    left = [path for path in installed.user.rglob("*") if not path.is_dir() and path not in own]
    assert left == []
