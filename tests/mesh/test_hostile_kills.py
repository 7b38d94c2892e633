"""`kill -9` of whatever comes, at seeded moments under load: afterwards everything is as declared and nothing is left over."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from tests.mesh.running import RunningMesh, mesh_processes, running_mesh, until
from tests.mesh.snapshots import snapshots

SEED = 7
KILLS = 8
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
        with httpx.Client(timeout=30) as client:
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
            chance.choice(victims).kill()
    finally:
        load.stop()
    until(mesh.healthy, 20, "a healthy mesh")
    for server_uuid in servers:
        mesh.until_state(server_uuid, "SERVER_STATE_READY", 20)
        answer = mesh.http.post(mesh.url("inference", f"/{server_uuid}/v1/chat/completions"), json=BODY)
        assert answer.status_code == 200, answer.text
    # Whatever failed was cut off on its way; the mesh itself never answered with an error of its own.
    assert load.outcomes["200"] > KILLS
    assert not {"404", "500", "401", "ReadTimeout"} & set(load.outcomes), load.outcomes
    until(lambda: _engines(mesh) == len(servers), 10, "one engine a server")
    records = {path.suffix for path in (mesh.home / "run" / "engines").iterdir()}
    count = len(list((mesh.home / "run" / "engines").iterdir()))
    assert count == len(records) * len(servers), sorted(path.name for path in (mesh.home / "run" / "engines").iterdir())
    assert not list((mesh.home / "objects" / "staging").iterdir())


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
        until(lambda: not mesh_processes(mesh.home), 10, "the end of every process")
        mesh.start()
        answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json={"model": "one", **BODY})
        assert answer.status_code == 200, answer.text
        path = f"/status/more-{number}"
        until(lambda at=path: mesh.call("GET", at, "download").json()["state"] == "DOWNLOAD_STATE_SUCCEEDED", 20, path)
    assert not list((mesh.home / "objects" / "staging").iterdir())


def _engines(mesh: RunningMesh) -> int:
    return len(snapshots(lambda words: "engine" in words, mesh_processes(mesh.home)))


def _source(mesh: RunningMesh) -> str:
    return (mesh.home / "import" / "sentence.gguf").as_uri()
