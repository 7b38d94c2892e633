"""`kill -9` of whatever comes, at seeded moments under load: afterwards everything is as declared and nothing is left over."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.mesh.running import RunningMesh, running_mesh, until
from tests.processes import engines, kill_all, mesh_processes

SEED = 7
KILLS = 8
PATIENCE = 60.0
"""Seconds in which anything is well again on a busy machine."""
LONGEST = 150.0
"""Seconds. A request that gets no answer for longer than any server may hold it hangs."""
BODY = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


@pytest.fixture
def mesh() -> Iterator[RunningMesh]:
    with running_mesh() as running:
        running.add_model("sentence")
        yield running


class Load:
    """Some requests at a time, by name, until stopped; counts what came of them."""

    def __init__(self, mesh: RunningMesh, model: str, clients: int = 4) -> None:
        self.outcomes: Counter[str] = Counter()
        self._url = mesh.url("inference", "/v1/chat/completions")
        self._body = {"model": model, **BODY}
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=LONGEST) as client:
            while not self._stopping.is_set():
                try:
                    self.outcomes[str(client.post(self._url, json=self._body).status_code)] += 1
                except httpx.TransportError as error:
                    self.outcomes[type(error).__name__] += 1
                    time.sleep(0.05)


def test_after_random_kills_exactly_the_declared_servers_run(mesh: RunningMesh) -> None:
    chance = random.Random(SEED)
    servers = [mesh.serve("sentence", model_name=name)["server_uuid"] for name in ("one", "two")]
    load = Load(mesh, "one")
    assert mesh.process is not None
    try:
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.1, 1.5))
            victims = sorted(mesh_processes(mesh.home), key=lambda process: process.pid)
            victims = [process for process in victims if process.pid != mesh.process.pid]
            kill_all([chance.choice(victims)])
    finally:
        load.stop()
    until(mesh.healthy, PATIENCE, "a healthy mesh")
    for server_uuid in servers:
        mesh.until_state(server_uuid, "SERVER_STATE_READY", PATIENCE)
        answer = mesh.http.post(mesh.url("inference", f"/{server_uuid}/v1/chat/completions"), json=BODY)
        assert answer.status_code == 200, answer.text
    # Whatever failed was cut off on its way; the mesh itself never answered with an error of its own.
    assert load.outcomes["200"] > KILLS
    assert not {"404", "500", "401", "ReadTimeout"} & set(load.outcomes), load.outcomes
    until(lambda: len(engines(mesh.home)) == len(servers), PATIENCE, "one engine a server")
    until(
        lambda: _are_of(_files(mesh), len(servers)),
        PATIENCE,
        lambda: f"the files of one engine a server: {_files(mesh)}",
    )
    assert not list((mesh.home / "objects" / "staging").iterdir())


def _files(mesh: RunningMesh) -> list[str]:
    return sorted(path.name for path in (mesh.home / "run" / "engines").iterdir())


def _are_of(files: list[str], engines: int) -> bool:
    """Whether there is one file of each kind for each engine."""
    return len(files) == engines * len({Path(name).suffix for name in files})


def test_a_mesh_that_is_killed_again_and_again_while_it_works_comes_back_whole(mesh: RunningMesh) -> None:
    chance = random.Random(SEED)
    server = mesh.serve("sentence", model_name="one")["server_uuid"]
    for number in range(3):
        mesh.call("POST", f"/servers/{server}:sleep")
        mesh.call("POST", f"/download/more-{number}", "download", json={"source": _source(mesh), "name": "more.gguf"})
        load = Load(mesh, "one", clients=2)
        time.sleep(chance.uniform(0, 0.5))
        assert mesh.process is not None
        mesh.process.kill()
        mesh.process.wait()
        load.stop()
        until(lambda: not mesh_processes(mesh.home), PATIENCE, "the end of every process")
        mesh.start()
        answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json={"model": "one", **BODY})
        assert answer.status_code == 200, answer.text
        path = f"/status/more-{number}"
        until(
            lambda at=path: mesh.call("GET", at, "download").json()["state"] == "DOWNLOAD_STATE_SUCCEEDED",
            PATIENCE,
            path,
        )
    assert not list((mesh.home / "objects" / "staging").iterdir())


def _source(mesh: RunningMesh) -> str:
    return (mesh.home / "import" / "sentence.gguf").as_uri()
