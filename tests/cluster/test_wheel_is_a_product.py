"""The wheel alone, installed with its extras into an empty environment, runs the demo as `make run` does. It needs a package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.running import ROOT, mesh_processes
from tests.ports import free_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, outside the checkout."""
    found = Path(tempfile.mkdtemp(prefix="wheel-"))
    yield found
    shutil.rmtree(found, ignore_errors=True)


def run(*words: str | Path, where: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "PYTHON", "VIRTUAL"))}
    return subprocess.run(
        list(map(str, words)),
        cwd=where,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_wheel_runs_the_demo_in_an_empty_environment(folder: Path) -> None:
    built = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, ROOT, where=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("llamesh-*.whl")
    assert run(sys.executable, "-m", "venv", folder / "env", where=folder).returncode == 0
    program = folder / "env" / "bin"
    installed = run(program / "pip", "install", "-q", f"{wheel}[mesh,engine,demo]", where=folder)
    assert installed.returncode == 0, installed.stderr
    ports = dict(zip(("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD"), map(str, free_ports(4)), strict=True))
    settings = {f"LLAMESH_{name}_PORT": port for name, port in ports.items()}
    settings |= {"LLAMESH_HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "config"), "HOME": str(folder)}
    try:
        shown = run(program / "llamesh", "up", "--demo", "--detach", where=folder, **settings)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "answered" in shown.stdout
        assert f":{ports['INFERENCE']}/v1" in shown.stdout
        doctor = run(program / "llamesh", "doctor", where=folder, **settings)
        assert doctor.returncode == 0, doctor.stdout
    finally:
        ended = run(program / "llamesh", "down", where=folder, **settings)
    assert ended.returncode == 0
    assert mesh_processes(folder / "home") == []
