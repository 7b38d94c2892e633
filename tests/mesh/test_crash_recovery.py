"""`kill -9` of each process in turn under a light load: everything is back by itself, and only requests in flight on it fail.

Nothing that was declared is lost, and nothing stays behind, even when the supervisor itself is killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.mesh.engines import alive
from tests.mesh.running import RunningMesh, running_mesh, until
from tests.processes import mesh_processes

BODY = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
PATIENCE = 60.0
"""Seconds in which anything is well again on a busy machine."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh() as running:
        running.add_model("sentence", "sentence.gguf")
        running.serve("sentence")
        yield running


class Load:
    """Requests one after the other, each noted with its start, end and outcome."""

    def __init__(self, mesh: RunningMesh) -> None:
        self.mesh = mesh
        self.outcomes: list[tuple[float, float, object]] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._infer), threading.Thread(target=self._manage)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.outcomes) > 4, PATIENCE, "the load to run")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _infer(self) -> None:
        url = self.mesh.url("inference", "/v1/chat/completions")
        self._repeat(lambda client: client.post(url, json=BODY))

    def _manage(self) -> None:
        url, headers = self.mesh.url("gateway", "/status"), {"authorization": f"Bearer {self.mesh.token}"}
        self._repeat(lambda client: client.get(url, headers=headers))

    def _repeat(self, ask: object) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            # One connection a request, as curl has it: a kept connection would blame the next request for the last one's end.
            with httpx.Client(timeout=PATIENCE) as client:
                try:
                    outcome: object = ask(client).status_code  # type: ignore[operator]
                except httpx.HTTPError as error:
                    outcome = repr(error)
            self.outcomes.append((started, time.monotonic(), outcome))
            self._stop.wait(0.02)

    def failures(self) -> list[tuple[float, float, object]]:
        return [item for item in self.outcomes if item[2] != 200]


@pytest.mark.parametrize("victim", ["gateway", "contract", "download", "controller", "engine", "envoy"])
def test_a_killed_process_comes_back_and_takes_nothing_with_it(mesh: RunningMesh, victim: str) -> None:
    before = {item["server_uuid"] for item in mesh.call("GET", "/status").json()["servers"]}
    killed = mesh.processes()[victim]
    # A killed engine takes its llama.cpp along, which answers until it has ended.
    dying = [killed, *killed.children()] if victim == "engine" else [killed]
    with Load(mesh) as load:
        moment = time.monotonic()
        os.kill(killed.pid, signal.SIGKILL)
        until(lambda: not any(alive(process.pid) for process in dying), PATIENCE, f"the end of {victim}")
        dead = time.monotonic()
        until(lambda: _back(mesh, victim, killed.pid), PATIENCE, f"{victim} to be back")
        back = time.monotonic()
        asked = len(load.outcomes)
        until(lambda: len(load.outcomes) > asked + 6, PATIENCE, "requests after the recovery")
    if victim == "envoy":
        # Nobody listens until the front door is back: those requests cannot even be sent.
        late = [item for item in load.failures() if item[0] > back + 0.5]
    else:
        late = [item for item in load.failures() if item[0] > dead or item[1] < moment]
    assert late == []
    assert {item["server_uuid"] for item in mesh.call("GET", "/status").json()["servers"]} == before
    assert mesh.call("GET", "/models/sentence").status_code == 200


def _back(mesh: RunningMesh, victim: str, old: int) -> bool:
    found = mesh.processes().get(victim)
    if found is None or found.pid == old or not mesh.healthy():
        return False
    try:
        return mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=BODY).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_controller_that_comes_back_adopts_the_engines(mesh: RunningMesh) -> None:
    engine, controller = mesh.processes()["engine"], mesh.processes()["controller"]
    os.kill(controller.pid, signal.SIGKILL)
    until(lambda: _back(mesh, "controller", controller.pid), PATIENCE, "the controller")
    assert mesh.processes()["engine"].pid == engine.pid


def test_nothing_outlives_a_killed_supervisor_and_a_new_one_finds_everything() -> None:
    with running_mesh() as mesh:
        mesh.add_model("sentence", "sentence.gguf")
        server = mesh.serve("sentence")
        assert mesh.process is not None
        os.kill(mesh.process.pid, signal.SIGKILL)
        mesh.process.wait()
        until(lambda: not mesh_processes(mesh.home), PATIENCE, "everything to end")
        mesh.start()
        mesh.until_state(server["server_uuid"], "SERVER_STATE_READY")
        assert mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=BODY).status_code == 200
