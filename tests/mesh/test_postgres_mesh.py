"""A whole mesh on PostgreSQL: each service in a schema of its own, and everything declared outlives a stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import asyncpg
import pytest

from engine.sentence import SENTENCE
from tests.mesh.running import RunningMesh, running_mesh, until

BODY = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
OWNERS = {"gateway", "contract", "download", "controller"}


@pytest.fixture(scope="module")
def database(postgres: Callable[[], str]) -> str:
    return postgres()


@pytest.fixture(scope="module")
def mesh(database: str) -> Iterator[RunningMesh]:
    with running_mesh(DATABASE_URL=database) as running:
        running.add_model("sentence", "sentence.gguf")
        yield running


def says(mesh: RunningMesh) -> str:
    answer = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=BODY)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"]).strip()


def restart(mesh: RunningMesh) -> None:
    """End the mesh as Ctrl-C does and start it again."""
    assert mesh.process is not None
    mesh.process.terminate()
    assert mesh.process.wait(60) == 0
    mesh.start()


async def test_each_service_has_a_schema_and_nothing_lies_in_public(mesh: RunningMesh, database: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch(
            "SELECT table_schema, table_name FROM information_schema.tables"
            " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
        )
    finally:
        await connection.close()
    assert {row["table_schema"] for row in rows} == OWNERS
    assert list(mesh.home.rglob("*.db")) + list(mesh.home.rglob("*.sqlite*")) == []


def test_declared_resources_survive_a_stop_and_a_start(mesh: RunningMesh) -> None:
    server = mesh.serve("sentence", model_name="sentence.gguf", runtime_params="--ctx-size 2048")
    assert says(mesh) == SENTENCE
    asleep = mesh.call("POST", "/serve", json={"model_uuid": "sentence", "model_name": "spare", "replicas": 0}).json()
    user = mesh.call("POST", "/users", json={"username": "ada", "password": "correct horse battery"})
    assert user.status_code == 200, user.text
    key = mesh.call("POST", "/keys", json={"display_name": "laptop"})
    assert key.status_code == 200, key.text
    model = mesh.call("GET", "/models/sentence").json()
    fetched = mesh.call("GET", "/status/sentence", "download").json()

    restart(mesh)

    mesh.until_state(server["server_uuid"], "SERVER_STATE_READY")
    assert says(mesh) == SENTENCE
    after = mesh.server(server["server_uuid"])
    for fact in (
        "server_uuid",
        "model_uuid",
        "model_name",
        "runtime_params",
        "spec",
        "endpoint",
        "owner",
        "create_time",
    ):
        assert after[fact] == server[fact], fact
    declared = {item["server_uuid"] for item in mesh.call("GET", "/status").json()["servers"]}
    assert declared == {server["server_uuid"], asleep["server_uuid"]}
    assert mesh.call("GET", "/models/sentence").json() == model
    assert mesh.call("GET", "/status/sentence", "download").json() == fetched
    assert "ada" in {item["username"] for item in mesh.call("GET", "/users").json()["users"]}
    assert "laptop" in {item["display_name"] for item in mesh.call("GET", "/keys").json()["keys"]}
    # A key of before, signed by the signing key of before.
    secret = key.json()["token"]
    listed = mesh.http.get(mesh.url("inference", "/v1/models"), headers={"authorization": f"Bearer {secret}"})
    assert listed.status_code == 200, listed.text


def test_a_server_that_was_stopped_stays_stopped(mesh: RunningMesh) -> None:
    server = mesh.serve("sentence", model_name="passing")
    assert mesh.call("DELETE", f"/stop/{server['server_uuid']}").status_code == 200
    until(lambda: mesh.call("GET", f"/servers/{server['server_uuid']}").status_code == 404, 60, "the server to be gone")
    restart(mesh)
    assert mesh.call("GET", f"/servers/{server['server_uuid']}").status_code == 404
