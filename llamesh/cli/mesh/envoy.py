"""Envoy as the supervisor starts and drains it. What it does is the controller's business, by xDS; here are only its first file and
its admin socket."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import string
import sys
import time
from pathlib import Path

import llamesh
from llamesh import tether
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.envoy_binary import find_envoy
from llamesh.locations import make_private
from llamesh.names import DRAIN_PATH, ENVOY_ADMIN

BOOTSTRAP = Path(llamesh.__file__).parent.parent / "envoy" / "bootstrap.yaml"
TETHER = Path(tether.__file__)

ADMIN_SECONDS = 5.0
"""How long an answer of the admin interface is waited for."""

_INFERENCE = "http.inference.downstream_rq_active"
"""Envoy's gauge of the inference requests that are running; watches and logs of the management API are not waited for."""


def admin_socket(settings: MeshSettings) -> Path:
    """Envoy's admin interface: private to this user."""
    return settings.run_dir / f"{ENVOY_ADMIN}.sock"


def write_bootstrap(settings: MeshSettings) -> Path:
    """Write Envoy's first file from its template and say where it is. In one step, and only if it is not there already."""
    values = {
        "node_id": socket.gethostname() or "llamesh",
        "admin_path": str(admin_socket(settings)),
        "controller_path": str(settings.run_dir / "controller.sock"),
    }
    # The template puts paths into double quotes; JSON's escapes are YAML's there.
    escaped = {name: json.dumps(value)[1:-1] for name, value in values.items()}
    content = string.Template(BOOTSTRAP.read_text()).substitute(escaped)
    path = _bootstrap(settings)
    with contextlib.suppress(OSError):
        if path.read_text() == content:
            return path
    make_private(settings.run_dir)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(content)
    unfinished.replace(path)
    return path


def command(settings: MeshSettings, parent: int) -> list[str]:
    """The command line. EnvoyNotFoundError where there is no Envoy."""
    envoy = [
        str(find_envoy()),
        "--config-path",
        str(_bootstrap(settings)),
        # Several meshes on one machine must not meet in Envoy's shared memory.
        "--disable-hot-restart",
        "--log-level",
        "warning",
        # Every message that Envoy's authors call work in progress is one that we pinned and test.
        "--component-log-level",
        "misc:error",
        "--drain-strategy",
        "immediate",
    ]
    return [sys.executable, "-I", "-S", str(TETHER), str(parent), *envoy]


async def drain(settings: MeshSettings) -> None:
    """Accept nothing more and wait, for at most drain_seconds, until no inference request runs."""
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, ask_admin, settings, "POST", "/healthcheck/fail")
        await loop.run_in_executor(None, ask_admin, settings, "POST", "/drain_listeners")
        await loop.run_in_executor(None, _refuse_held, settings)
        await loop.run_in_executor(None, _await_requests, settings)
    except OSError:
        return  # It is gone or was never up: there is nothing to drain.


def _refuse_held(settings: MeshSettings) -> None:
    """Let the waker answer requests that wait for an engine: they would keep the drain waiting for an engine that never comes."""
    connection = _UnixConnection(str(settings.run_dir / "waker.sock"), ADMIN_SECONDS)
    try:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("PUT", DRAIN_PATH)
            connection.getresponse().read()
    finally:
        connection.close()


def _await_requests(settings: MeshSettings) -> None:
    deadline = time.monotonic() + settings.drain_seconds
    while _running_requests(settings) and time.monotonic() < deadline:
        time.sleep(0.1)


def _bootstrap(settings: MeshSettings) -> Path:
    return settings.run_dir / "envoy.yaml"


def _running_requests(settings: MeshSettings) -> int:
    stats = json.loads(ask_admin(settings, "GET", f"/stats?format=json&filter=^{_INFERENCE.replace('.', '%5C.')}$"))
    return sum(int(stat.get("value", 0)) for stat in stats.get("stats", ()))


def ask_admin(settings: MeshSettings, method: str, path: str, seconds: float = ADMIN_SECONDS) -> bytes:
    """Envoy's answer on its admin socket, whatever its status. OSError where there is none within so many seconds."""
    connection = _UnixConnection(str(admin_socket(settings)), seconds)
    try:
        connection.request(method, path)
        return connection.getresponse().read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__("envoy", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
