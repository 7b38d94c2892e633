"""The run directory is deleted below a mesh that runs: everything is there again by itself, and answers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from llamesh.locations import run_directory
from tests.mesh.running import RunningMesh, running_mesh, until
from tests.mesh.vanishing import vanish

BODY = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
PATIENCE = 60.0
"""Seconds in which anything is well again on a busy machine."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh() as running:
        running.add_model("sentence", "sentence.gguf")
        running.serve("sentence")
        yield running


def amiss(mesh: RunningMesh) -> str:
    """What does not answer; empty if every part does, and inference."""
    try:
        chat = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=BODY, timeout=10)
        listed = mesh.http.get(mesh.url("inference", "/v1/models"))
        models = mesh.call("GET", "/models")
        failed = [answer for answer in (chat, listed, models) if answer.status_code != 200]
        return "" if mesh.healthy() and not failed else f"{mesh.components()} {[answer.text for answer in failed]}"
    except (httpx.HTTPError, ValueError) as error:
        return repr(error)


def until_well(mesh: RunningMesh) -> None:
    until(lambda: not amiss(mesh), PATIENCE, lambda: f"the mesh to be well: {amiss(mesh)}\n{mesh.log()}")


@pytest.mark.parametrize("member", ["gateway", "contract", "download", "controller", "waker"])
def test_a_member_whose_socket_is_deleted_answers_again(mesh: RunningMesh, member: str) -> None:
    path = run_directory(mesh.home, {}) / f"{member}.sock"
    engine = mesh.processes()["engine"]
    path.unlink()
    until(path.exists, PATIENCE, f"{path} to be there again")
    until_well(mesh)
    assert mesh.processes()["engine"] == engine, "no engine ends because a member is started again"


def test_envoys_first_file_is_written_again_when_envoy_is_started_again(mesh: RunningMesh) -> None:
    file = run_directory(mesh.home, {}) / "envoy.yaml"
    file.unlink()
    envoy = mesh.processes()["envoy"]
    envoy.kill()
    until(lambda: mesh.processes().get("envoy") not in (None, envoy), PATIENCE, "another Envoy")
    until_well(mesh)
    assert file.exists()


def test_the_whole_run_directory_may_be_deleted(mesh: RunningMesh) -> None:
    folder = run_directory(mesh.home, {})
    names = ["gateway.sock", "contract.sock", "download.sock", "controller.sock", "waker.sock"]
    vanish(folder)
    until(lambda: all((folder / name).exists() for name in names), PATIENCE, "the sockets to be there again")
    until_well(mesh)
    until(
        lambda: list(folder.glob("engines/*.json")) and list(folder.glob("engines/*.sock")),
        PATIENCE,
        "the engine's files",
    )
    (server,) = mesh.call("GET", "/status").json()["servers"]
    mesh.until_state(server["server_uuid"], "SERVER_STATE_READY")
