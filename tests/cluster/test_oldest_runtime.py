"""The client works on the oldest libraries that pyproject.toml allows, as docs/adr/0001 claims, against a whole mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.mesh.running import ADMIN, ROOT, RunningMesh

LIBRARIES = ("grpcio", "protobuf", "googleapis-common-protos")

CLIENT = """
import asyncio, json, sys
from importlib.metadata import version
from llamesh import AsyncClient, Client, errors

url, username, password = sys.argv[1:]
found = {name: version(name) for name in ("grpcio", "protobuf", "googleapis-common-protos")}
with Client(url) as mesh:
    try:
        list(mesh.models.list())
    except errors.MeshError as error:
        found["anonymous"] = [type(error).__name__, error.code]
    try:
        mesh.login(username, "wrong")
    except errors.MeshError as error:
        found["wrong password"] = [type(error).__name__, error.code]
    mesh.login(username, password)
    found["models"] = [model.name for model in mesh.models.list()]
    try:
        mesh.models.get("nothing")
    except errors.ModelNotFound as error:
        found["refused"] = [error.reason, error.model_uuid, bool(error.remedy)]
    try:
        mesh.servers.serve("sentence", runtime_params="--ctx-size many")
    except errors.ParameterInvalid as error:
        found["parameter"] = [error.code, error.parameter]
    token = mesh.transport.token

async def asynchronous():
    async with AsyncClient(url, token) as mesh:
        found["servers"] = [server.model_name async for server in mesh.servers.list()]
        async for event in mesh.watch(timeout=20):
            found["event"] = event.WhichOneof("event")
            break

asyncio.run(asynchronous())
json.dump(found, sys.stdout)
"""


def oldest() -> dict[str, str]:
    """The lower bounds in pyproject.toml of what the client's stubs run on."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    bounds = {}
    for requirement in wanted:
        name, _, rest = requirement.partition(">=")
        if name in LIBRARIES:
            bounds[name] = rest.partition(",")[0]
    assert set(bounds) == set(LIBRARIES)
    return bounds


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that has the oldest libraries and the client, and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    found = tmp_path / "venv" / "bin" / "python"
    pins = [f"{name}=={version}" for name, version in oldest().items()]
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:"]
    installed = subprocess.run(
        [str(found), "-m", "pip", "install", *options, *pins], capture_output=True, text=True, timeout=100
    )
    assert installed.returncode == 0, installed.stderr
    # What the wheel brings of itself: the package, without the rest of this checkout.
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "llamesh").symlink_to(ROOT / "llamesh")
    (tmp_path / "package" / "buf").symlink_to(ROOT / "buf")
    return found


def same(version: str) -> tuple[int, ...]:
    """A version without the zeros at its end: 1.66 is 1.66.0."""
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def test_the_client_works_on_the_oldest_libraries(mesh: RunningMesh, python: Path, tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "PYTHON"))}
    environment = {**clean, "PYTHONPATH": str(tmp_path / "package"), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    ran = subprocess.run(
        [str(python), "-W", "error::UserWarning", str(script), mesh.url("gateway", ""), *ADMIN.values()],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    for name, version in oldest().items():
        assert same(found[name]) == same(version), name
    assert found["anonymous"][1] == "UNAUTHENTICATED"
    assert found["wrong password"][1] == "UNAUTHENTICATED"
    assert "sentence.gguf" in found["models"]
    assert found["refused"] == ["MODEL_NOT_FOUND", "nothing", True]
    assert found["parameter"] == ["INVALID_ARGUMENT", "--ctx-size"]
    assert isinstance(found["servers"], list)
    assert found["event"]
