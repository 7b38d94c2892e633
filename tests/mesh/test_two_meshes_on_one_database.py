"""Two meshes on one PostgreSQL: the second is refused by name while the first lives, and follows it once it is dead."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.sentence import SENTENCE
from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh, until
from tests.processes import engines, left_behind

BODY = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}


@contextmanager
def another_home(**settings: str) -> Iterator[RunningMesh]:
    """A mesh that is not started yet, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="mesh-"))
    mesh = RunningMesh(folder / "home", **settings)
    try:
        yield mesh
    finally:
        mesh.stop()
        shutil.rmtree(folder, ignore_errors=True)


def says(mesh: RunningMesh) -> str:
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=BODY)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def test_the_second_mesh_is_refused_and_follows_when_the_first_is_dead(postgres: Callable[[], str]) -> None:
    database = postgres()
    with running_mesh(DATABASE_URL=database) as first, another_home(DATABASE_URL=database) as second:
        first.add_model("sentence", "sentence.gguf")
        server = first.serve("sentence", model_name="sentence.gguf")
        running = engines(first.home)
        refused = subprocess.run(
            [sys.executable, "-m", "llamesh.cli.main", "up"],
            env=second.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert refused.returncode != 0
        assert str(first.home) in refused.stderr, refused.stderr
        assert "database" in refused.stderr
        assert left_behind(second.home) == []
        # The first one has noticed nothing.
        assert engines(first.home) == running
        assert says(first) == SENTENCE
        first.add_model("more", "more.gguf")

        first.kill()
        second.start()
        # The servers of the database are the follower's now; the model's file was in the home of the dead one, and it says so.
        assert {item["server_uuid"] for item in second.call("GET", "/status").json()["servers"]} == {
            server["server_uuid"]
        }
        until(lambda: "ModelCorrupt" in reasons(second, server["server_uuid"]), 60, "the missing file to be said")
        second.add_model("sentence", "sentence.gguf")
        second.until_state(server["server_uuid"], "SERVER_STATE_READY", 90)
        assert says(second) == SENTENCE


def reasons(mesh: RunningMesh, uuid: str) -> set[str]:
    return {condition["reason"] for condition in mesh.server(uuid).get("conditions", ())}


def test_the_same_home_is_followed_at_once(postgres: Callable[[], str]) -> None:
    with running_mesh(DATABASE_URL=postgres()) as mesh:
        mesh.kill()
        mesh.start()
        log = (mesh.home / "logs" / "controller.log").read_text() + (mesh.home / "logs" / "download.log").read_text()
        assert "waiting for a lease" not in log
