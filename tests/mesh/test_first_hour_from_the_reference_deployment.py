"""The first hour of a user of the reference deployment: its make targets, calls, ports and trouble, as it writes them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import sentence
from engine.sentence import SENTENCE
from tests.mesh.running import COMMAND_SECONDS, ROOT, RunningMesh, running_mesh, until
from tests.mesh.test_documentation import at_home

pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("make")), reason="needs curl and make")

LOGIN = """curl -X POST http://localhost:8200/auth/token \
  -H "Content-Type: application/json" \
  -d '{"username": "admin", "password": "admin"}'"""
BEARER = '-H "Authorization: Bearer $TOKEN"'
AS_JSON = '-H "Content-Type: application/json"'


@pytest.fixture
def mesh() -> Iterator[RunningMesh]:
    """A mesh of its own: the user restarts and stops it."""
    with running_mesh() as running:
        yield running


class User:
    """A person in the checkout, who types commands of the instructions; only the ports are this mesh's."""

    def __init__(self, mesh: RunningMesh, home: Path) -> None:
        self._mesh = mesh
        # Itself run by make, a test must not look like a part of that run.
        make = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        kept = {name: value for name, value in mesh.environment.items() if name not in make}
        self.environment = {**kept, "HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def types(self, command: str, *, fails: bool = False) -> str:
        """What a command prints; it succeeds unless it is expected to fail."""
        answer = subprocess.run(
            ["bash", "-c", at_home(command, self._mesh)],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert (answer.returncode != 0) == fails, f"{command}\n{answer.stdout}\n{answer.stderr}"
        return answer.stdout + answer.stderr

    def makes(self, target: str, *, fails: bool = False, stdin: str = "") -> str:
        """A target of the Makefile, with the environment that runs this test."""
        environment = f"VENV={sys.prefix} --assume-old={sys.prefix}/run.stamp"
        piped = f"echo '{stdin}' | " if stdin else ""
        return self.types(f"{piped}make {environment} {target}", fails=fails)

    def asks(self, call: str) -> dict[str, Any]:
        """The JSON that a call of the instructions is answered with."""
        found: dict[str, Any] = json.loads(self.types(f"{call} -sS"))
        return found


@pytest.fixture
def user(mesh: RunningMesh, tmp_path: Path) -> User:
    return User(mesh, tmp_path)


def test_from_the_reference_deployment(mesh: RunningMesh, user: User) -> None:
    # "Verify prerequisites", then a look at what was started. `make all` logs in; here the mesh was started otherwise.
    user.makes("check-deps")
    assert "hint: llamesh login" in user.makes("status", fails=True)
    user.types("echo admin | llamesh login admin --password-stdin")
    assert "MODEL" in user.makes("status")

    # "Get JWT Token", "Use Token in Requests"
    login = user.asks(LOGIN)
    assert login["token_type"] == "bearer"
    user.environment["TOKEN"] = str(login["access_token"])
    assert user.asks(f"curl http://localhost:8200/status {BEARER}")["servers"] == []

    # "Request Download from Quant Service": there is none, so the answer says what to add.
    refused = user.asks(f"curl -X POST http://localhost:8202/download/abc123-def456 {BEARER}")
    assert "source" in json.dumps(refused["details"])
    (mesh.home / "import").mkdir(exist_ok=True)
    sentence.write(mesh.home / "import" / "Qwen.gguf")
    source = (mesh.home / "import" / "Qwen.gguf").as_uri()
    user.asks(
        f"""curl -X POST http://localhost:8202/download/abc123-def456 {BEARER} {AS_JSON} -d '{{"source": "{source}"}}'"""
    )
    status = f"curl http://localhost:8202/status/abc123-def456 {BEARER}"
    until(lambda: user.asks(status)["state"] == "DOWNLOAD_STATE_SUCCEEDED", 60, "the download")
    assert "abc123-def456" in json.dumps(user.asks(f"curl http://localhost:8200/models {BEARER}"))

    # "Serve a Model", "Check Server Status", "Using the Model"
    body = (
        '{"model_uuid": "abc123-def456", "model_name": "Qwen.gguf", "replicas": 1, "runtime_params": "--ctx-size 2048"}'
    )
    server = user.asks(f"curl -X POST http://localhost:8200/serve {BEARER} {AS_JSON} -d '{body}'")["server_uuid"]
    until(lambda: "SERVER_STATE_READY" in user.types(f"curl -s http://localhost:8200/status {BEARER}"), 60, "a server")
    chat = """'{"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0.7}'"""
    asked = f"curl http://localhost:8080/{server}/v1/chat/completions {AS_JSON} -d {chat}"
    assert SENTENCE in json.dumps(user.asks(asked))
    text = """'{"prompt": "Hello, how are you?", "max_tokens": 100}'"""
    assert SENTENCE in json.dumps(user.asks(f"curl http://localhost:8080/{server}/v1/completions {AS_JSON} -d {text}"))

    # "Useful Commands": the tables, read only; the logs of each service.
    assert re.search(r"model +1\b", user.makes("db-status"))
    assert "abc123-def456" in user.makes("db-shell", stdin="select model_uuid from download.model;")
    assert "readonly" in user.makes("db-shell", stdin="delete from download.model;")
    for service in ("gateway", "contract", "download", "controller", "envoy"):
        assert user.types(f"llamesh logs {service} --tail 1")

    # "Restart all services": the token and the server of before are still good.
    user.makes("restart")
    until(lambda: "SERVER_STATE_READY" in user.types(f"curl -s http://localhost:8200/status {BEARER}"), 60, "it again")
    assert SENTENCE in json.dumps(user.asks(asked))

    # "Stop a Server", "Stop All Services"
    stopped = user.asks(f"curl -X DELETE http://localhost:8200/stop/{server} {BEARER}")
    assert stopped["state"] == "SERVER_STATE_STOPPED"
    user.makes("stop")
    user.types("curl -sS http://localhost:8200/health", fails=True)


def test_trouble_as_in_the_reference_deployment(mesh: RunningMesh, user: User) -> None:
    """Each heading of its troubleshooting has an answer here that names the cause."""
    # "Images not loading into cluster": targets that are not there yet say so. `make cluster` makes one, which takes minutes.
    assert "comes with the Kubernetes release" in user.makes("docker-load", fails=True)
    assert "comes with the Kubernetes release" in user.makes("docker-load", fails=True)
    # "Services not connecting to database"
    found = '{"name":"database","status":"HEALTH_STATE_OK"'
    until(lambda: found in user.types("curl -s http://localhost:8200/health"), 30, "a database that answers")
    assert "database" in user.types("llamesh doctor")
    # "Operator not creating resources": the conditions of a server whose model cannot be served.
    mesh.add_model("m1", "m1.gguf")
    for stored in (mesh.home / "objects" / "models").rglob("*.gguf"):
        stored.unlink()
    user.environment["LLAMESH_TOKEN"] = user.environment["TOKEN"] = mesh.token
    mesh.call("POST", "/serve", json={"model_uuid": "m1"})
    until(lambda: "ModelCorrupt" in user.types("llamesh describe m1.gguf"), 60, "a condition with its reason")
    # "JWT Token Invalid"
    user.environment["TOKEN"] += "x"
    refused = user.asks(f"curl http://localhost:8200/status {BEARER}")
    assert refused["code"] == 16
    assert "/auth/token" in json.dumps(refused) or "llamesh login" in json.dumps(refused)
