"""`llamesh env` lets ordinary programs trust the authority of a mesh, and they still reach the hosts that they reached before."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llamesh.cli.mesh.authority import Files, issue
from llamesh.cli.trust_variables import REPLACING

PYTHON = {
    "urllib": "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])",
    "httpx": "import sys, httpx; httpx.get(sys.argv[1])",
    "requests": "import sys, requests; requests.get(sys.argv[1])",
}
CLIENTS = {
    "curl": ["curl", "-sS"],
    "node": ["node", "-e", "fetch(process.argv[1]).catch(() => process.exit(1))"],
    **{name: [sys.executable, "-c", program] for name, program in PYTHON.items()},
}


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        return


@contextmanager
def server(home: Path) -> Iterator[str]:
    """The address of an HTTPS server whose certificate the authority below a home has signed."""
    files = Files(home)
    issue(files, ["localhost", "127.0.0.1"], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as listening:
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"https://localhost:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


class Machine:
    """A user's environment, whose system trusts the authority of one server, and a mesh with an authority of its own."""

    def __init__(self, folder: Path, mesh: str, other: str) -> None:
        self.mesh, self.other = mesh, other
        self.authority = Files(folder / "mesh").authority
        self.bundle = self.authority.with_name("ca-bundle.pem")
        self.system = Files(folder / "other").authority
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "LLAMESH_HOME": str(folder / "mesh"),
            "LLAMESH_URL": mesh,
            "LLAMESH_INFERENCE_URL": mesh,
            "SSL_CERT_FILE": str(self.system),
        }

    def env(self, **changed: str) -> dict[str, str]:
        """What `llamesh env` gives."""
        command = [sys.executable, "-m", "llamesh.cli.main", "env", "--output", "json"]
        environment = self.environment | changed
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        return found

    def reached(self, client: str, url: str, variables: dict[str, str]) -> bool:
        """Whether a client takes the certificate at an address."""
        environment = self.environment | variables
        return not subprocess.run(
            [*CLIENTS[client], url], env=environment, capture_output=True, timeout=60, check=False
        ).returncode


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with server(tmp_path / "mesh") as mesh, server(tmp_path / "other") as other:
        yield Machine(tmp_path, mesh, other)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_reaches_the_mesh_and_the_hosts_of_before(client: str, machine: Machine) -> None:
    if shutil.which(CLIENTS[client][0]) is None:
        pytest.skip(f"{client} is not installed")
    assert not machine.reached(client, machine.mesh, {})
    variables = machine.env()
    assert machine.reached(client, machine.mesh, variables)
    # Node.js keeps its own authorities, and requests those of certifi, unless told; the bundle adds those of the system.
    assert machine.reached(client, machine.other, variables) == (client != "node")


def test_a_second_call_in_the_same_shell_changes_nothing(machine: Machine) -> None:
    variables = machine.env()
    assert variables["NODE_EXTRA_CA_CERTS"] == str(machine.authority)
    assert {variables[name] for name in REPLACING} == {str(machine.bundle)}
    written = machine.bundle.read_bytes()
    assert machine.bundle.stat().st_mode & 0o777 == 0o600
    assert written == machine.system.read_bytes() + machine.authority.read_bytes()
    assert machine.env(**variables) == variables
    assert machine.bundle.read_bytes() == written


def test_a_user_who_trusts_the_mesh_of_another_machine_has_the_bundle_beside_the_profile(
    machine: Machine, tmp_path: Path
) -> None:
    kept = tmp_path / "config" / "llamesh" / "ca.pem"
    kept.parent.mkdir(parents=True)
    shutil.copy(machine.authority, kept)
    variables = machine.env(LLAMESH_HOME="")
    assert variables["SSL_CERT_FILE"] == str(kept.with_name("ca-bundle.pem"))
    assert machine.reached("urllib", machine.mesh, variables)
    named = machine.env(LLAMESH_HOME="", LLAMESH_CA=str(machine.authority))
    assert named["NODE_EXTRA_CA_CERTS"] == str(machine.authority)


def test_without_tls_nothing_is_said_about_trust(machine: Machine) -> None:
    assert not {*REPLACING, "NODE_EXTRA_CA_CERTS"} & machine.env(LLAMESH_URL="http://localhost:8200").keys()
