"""A whole mesh of the test's own: `llamesh up` in a folder, on free ports, spoken to as users do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from engine import sentence
from tests.migrated_tables import give_tables
from tests.ports import free_ports
from tests.processes import kill_all, left_behind, mesh_processes

ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")
MEMBERS = ("services.gateway", "services.contract", "services.download", "services.quant", "controller")
MODULES = (*MEMBERS, "engine")
ADMIN = {"username": "admin", "password": "admin"}
AT_ONCE = 9.0
"""Seconds within which what counts at once is seen, also on a busy machine: fewer than the 10 s between two heartbeats of a stream."""
COMMAND_SECONDS = 200.0
"""Seconds that one command, `llamesh up` among them, may take on a busy machine: fewer than the limit of a test."""


def until(condition: Callable[[], T], seconds: float = 30.0, what: str | Callable[[], str] = "") -> T:
    """The first true value of a condition; fails with what was waited for, which a callable describes then."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            words = what() if callable(what) else what
            raise AssertionError(f"waited {seconds} s in vain for {words or condition}")
        time.sleep(0.05)


class RunningMesh:
    """One mesh. Its processes end with it, however the test ends."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.ports = dict(zip(("inference", "gateway", "contract", "download"), free_ports(4), strict=True))
        self.environment = {
            **{
                name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "JWT_", "MINIO_"))
            },
            "LLAMESH_HOME": str(home),
            "LLAMESH_DRAIN_SECONDS": "5",
            **{f"LLAMESH_{name.upper()}_PORT": str(port) for name, port in self.ports.items()},
            **settings,
        }
        self.ready_state = "HEALTH_STATE_OK"
        """What GET /health says of it when it is ready."""
        self.process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(timeout=60)
        self._token = ""

    def start(self) -> None:
        """Start it and wait until every part is well."""
        log = (self.home.parent / "up.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "llamesh.cli.main", "up"],
            env=self.environment,
            cwd=self.home.parent,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        until(self.healthy, 90, f"a healthy mesh; {self.home.parent / 'up.log'} says why")

    def healthy(self) -> bool:
        """Whether GET /health says OK, or what is expected here instead."""
        assert self.process is not None
        assert self.process.poll() is None, (self.home.parent / "up.log").read_text()[-4000:]
        try:
            return bool(self.http.get(self.url("gateway", "/health")).json().get("status") == self.ready_state)
        except (httpx.HTTPError, ValueError):
            return False

    def log(self) -> str:
        """The last lines of every log of the mesh."""
        logs = [self.home.parent / "up.log", *sorted((self.home / "logs").glob("*.log"))]
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in logs if path.exists()
        )

    def components(self) -> dict[str, str]:
        """What GET /health says of each part of the mesh."""
        found = self.http.get(self.url("gateway", "/health")).json()["components"]
        return {part["name"]: part["status"].removeprefix("HEALTH_STATE_") for part in found}

    def url(self, port: str, path: str) -> str:
        """Address of a path at a port of Envoy."""
        return f"http://127.0.0.1:{self.ports[port]}{path}"

    @property
    def token(self) -> str:
        """A token of the administrator."""
        if not self._token:
            password = self.environment.get("LLAMESH_ADMIN_PASSWORD", ADMIN["password"])
            admin = {"username": ADMIN["username"], "password": password}

            def answered() -> str:
                answer = self.http.post(self.url("gateway", "/auth/token"), json=admin)
                assert answer.status_code in (200, 503), answer.text
                return str(answer.json()["access_token"]) if answer.status_code == 200 else ""

            self._token = until(answered, 30, "a token")
        return self._token

    def call(self, method: str, path: str, port: str = "gateway", **arguments: Any) -> httpx.Response:
        """A management call with the administrator's token."""
        headers = {"authorization": f"Bearer {self.token}", **arguments.pop("headers", {})}
        return self.http.request(method, self.url(port, path), headers=headers, **arguments)

    def add_model(self, uuid: str, name: str = "", path: Path | None = None) -> dict[str, Any]:
        """Bring a model in through the download service, the sentence model unless told otherwise."""
        folder = self.home / "import"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{uuid}.gguf"
        if path is None:
            sentence.write(target)
        else:
            shutil.copyfile(path, target)
        body = {"source": target.as_uri(), "name": name or f"{uuid}.gguf"}
        answer = self.call("POST", f"/download/{uuid}", "download", json=body)
        assert answer.status_code == 200, answer.text

        def ended() -> dict[str, Any] | None:
            state: dict[str, Any] = self.call("GET", f"/status/{uuid}", "download").json()
            assert state["state"] != "DOWNLOAD_STATE_FAILED", state
            return state if state["state"] == "DOWNLOAD_STATE_SUCCEEDED" else None

        return until(ended, 60, f"the download of {uuid}") or {}

    def serve(self, model: str, **spec: Any) -> dict[str, Any]:
        """Serve a model and wait until it is ready."""
        answer = self.call("POST", "/serve", json={"model_uuid": model, "replicas": 1, **spec})
        assert answer.status_code == 200, answer.text
        return self.until_state(answer.json()["server_uuid"], "SERVER_STATE_READY")

    def server(self, uuid: str) -> dict[str, Any]:
        """A server as the gateway sees it."""
        answer: dict[str, Any] = self.call("GET", f"/servers/{uuid}").json()
        return answer

    def until_state(self, uuid: str, state: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until a server is in a state."""

        def there() -> dict[str, Any] | None:
            server = self.server(uuid)
            return server if server.get("state") == state else None

        return until(there, seconds, f"{uuid} to be {state}, it is {self.server(uuid)}") or {}

    def processes(self) -> dict[str, psutil.Process]:
        """Every process of the mesh by what it is: supervisor, gateway, contract, download, controller, envoy, engine..."""
        assert self.process is not None
        found = {"supervisor": psutil.Process(self.process.pid)}
        for process in mesh_processes(self.home):
            with suppress(psutil.NoSuchProcess):  # it may end at any moment
                found.setdefault(_kind(process), process)
        return found

    @contextmanager
    def without_restarts(self) -> Iterator[None]:
        """A `with` block in which no member, Envoy and supervisor is restarted, and after which the mesh is healthy."""
        kinds = {"supervisor", "envoy", *(name.removeprefix("services.") for name in MEMBERS)}
        before = self.processes()
        yield
        until(self.healthy, 60, "a healthy mesh")
        now = self.processes()
        # Processes are equal if their ids and their start times are.
        assert {kind: now.get(kind) for kind in kinds} == {kind: before.get(kind) for kind in kinds}

    def kill(self) -> None:
        """End every process with SIGKILL, as a loss of power does, and wait until none is left."""
        assert self.process is not None
        processes = mesh_processes(self.home)
        self.process.kill()
        kill_all(processes)
        self.process.wait()
        assert not left_behind(self.home), "a killed process goes on"

    def stop(self) -> None:
        """End it as Ctrl-C does, and make sure that nothing stays behind."""
        self.http.close()
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        finally:
            left = left_behind(self.home)
            kill_all(left)
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        assert not left, f"left behind: {left}"


def _kind(process: psutil.Process) -> str:
    words = process.cmdline()  # NoSuchProcess is for the caller: what has ended is of no kind
    for word in words:
        if word in MODULES:
            return word.removeprefix("services.")
    return "envoy" if words and Path(words[0]).name == "envoy" else " ".join(words)


@contextmanager
def running_mesh(*, ready_state: str = "HEALTH_STATE_OK", **settings: str) -> Iterator[RunningMesh]:
    """A mesh for a `with` block, in a folder of its own with a short path."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))
    mesh = RunningMesh(folder / "home", **settings)
    mesh.ready_state = ready_state
    try:
        if "DATABASE_URL" not in settings:
            give_tables(mesh.home)
        mesh.start()
        yield mesh
    finally:
        mesh.stop()
        shutil.rmtree(folder, ignore_errors=True)
