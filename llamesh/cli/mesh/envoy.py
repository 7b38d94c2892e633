"""Starts and drains Envoy for the supervisor. The controller configures Envoy by xDS; this module writes the bootstrap file and uses
the admin socket."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import time
from pathlib import Path

import llamesh
from llamesh import tether
from llamesh.cli.mesh import envoy_tls
from llamesh.cli.mesh.settings import MeshSettings
from llamesh.envoy_binary import find_envoy
from llamesh.locations import make_private
from llamesh.names import DRAIN_PATH, ENVOY_ADMIN
from llamesh.private_files import write_private

BOOTSTRAP = Path(llamesh.__file__).parent.parent / "envoy" / "bootstrap.yaml"
TETHER = Path(tether.__file__)

ADMIN_SECONDS = 5.0
"""Deadline in seconds of a call to the admin interface."""

_INFERENCE = "http.inference.downstream_rq_active"
"""Envoy's gauge of running inference requests. The drain does not wait for streams of the management API."""


def admin_socket(settings: MeshSettings) -> Path:
    """Envoy's admin interface; only this user can reach it."""
    return settings.run_dir / f"{ENVOY_ADMIN}.sock"


def write_bootstrap(settings: MeshSettings) -> Path:
    """Write Envoy's bootstrap file from its template, atomically, unless it is up to date. Return its path."""
    values = {
        "node_id": socket.gethostname() or "llamesh",
        "admin_path": str(admin_socket(settings)),
        "controller_path": str(settings.run_dir / "controller.sock"),
    }
    content = envoy_tls.with_tls(envoy_tls.filled(BOOTSTRAP, values), settings).encode()
    envoy_tls.write_secrets(settings)
    path = _bootstrap(settings)
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            return path
    make_private(settings.run_dir)
    write_private(path, content, durable=False)
    return path


def command(settings: MeshSettings, parent: int) -> list[str]:
    """Return the command line. EnvoyNotFoundError if there is no Envoy."""
    envoy = [
        str(find_envoy().absolute()),
        "--config-path",
        str(_bootstrap(settings)),
        # Several meshes on one machine must not share Envoy's shared memory.
        "--disable-hot-restart",
        "--log-level",
        "warning",
        # We use messages that Envoy marks as work in progress; the version of Envoy is pinned and tested.
        "--component-log-level",
        "misc:error",
        "--drain-strategy",
        "immediate",
    ]
    return tether.tethered(parent, *envoy)


async def drain(settings: MeshSettings) -> None:
    """Stop accepting requests, then wait at most `drain_seconds` until no inference request runs."""
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, ask_admin, settings, "POST", "/healthcheck/fail")
        await loop.run_in_executor(None, ask_admin, settings, "POST", "/drain_listeners")
        await loop.run_in_executor(None, _refuse_held, settings)
        await loop.run_in_executor(None, _await_requests, settings)
    except OSError:
        return  # Envoy has ended or never started, so there is nothing to drain.


def _refuse_held(settings: MeshSettings) -> None:
    """Let the waker answer the requests that it holds: no engine will start for them, and the drain would wait in vain."""
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
    """Return the answer of the admin interface, whatever its status. OSError if there is none before the deadline."""
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
