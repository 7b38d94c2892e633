"""A member that is stopped (SIGSTOP, as a blocked event loop would be) is noticed, killed and started again; who asks meanwhile is told."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh, until
from tests.processes import ended

PATIENCE = 8.0
"""LLAMESH_MEMBER_PATIENCE_SECONDS of these tests: more than a busy machine keeps a process from running."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh(LLAMESH_MEMBER_PATIENCE_SECONDS=f"{PATIENCE:g}") as running:
        running.add_model("sentence", "sentence.gguf")
        running.serve("sentence", runtime_params="--ctx-size 512 --parallel 1")
        yield running


@pytest.fixture(scope="module")
def patient() -> Iterator[RunningMesh]:
    """So patient that a test meets the hung process, not its successor."""
    with running_mesh(LLAMESH_MEMBER_PATIENCE_SECONDS="3600") as running:
        yield running


@contextmanager
def hanging(mesh: RunningMesh, name: str) -> Iterator[None]:
    """A member or Envoy hangs in a `with` block; after it the mesh is healthy again."""
    process = mesh.processes()[name]
    process.suspend()
    try:
        yield
    finally:
        process.resume()
    until(mesh.healthy, 60, "a healthy mesh")


def said(mesh: RunningMesh) -> str:
    return (mesh.home.parent / "up.log").read_text()


def listens(mesh: RunningMesh, name: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(mesh.home / "run" / f"{name}.sock")) == 0


class Requests:
    """Chats again and again, without retries, from a thread; keeps what failed."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._mesh = mesh
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answered = 0
        self.failed: list[str] = []

    def __enter__(self) -> Requests:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        body = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        with httpx.Client(timeout=60, transport=httpx.HTTPTransport(retries=0)) as client:
            while not self._over.is_set():
                try:
                    answer = client.post(self._mesh.url("inference", "/v1/chat/completions"), json=body)
                except httpx.HTTPError as error:
                    self.failed.append(type(error).__name__)
                    continue
                if answer.status_code == 200:
                    self.answered += 1
                else:
                    self.failed.append(f"{answer.status_code} {answer.text}")
                time.sleep(0.02)


def names(answer: httpx.Response, component: str) -> bool:
    """Whether health says that this component does not answer: Envoy does for the gateway, the gateway for all others."""
    if component == "gateway":
        return answer.status_code == 504
    if answer.status_code != 200:  # Envoy's, of a gateway that a busy machine keeps from answering in time
        return False
    parts = {part["name"]: part for part in answer.json()["components"]}
    return (parts[component]["status"], parts[component]["message"]) == ("HEALTH_STATE_DOWN", "does not answer")


@pytest.mark.parametrize("name", ["gateway", "contract", "download", "controller"])
def test_health_answers_and_names_a_member_that_hangs(patient: RunningMesh, name: str) -> None:
    """An answer that waited for the member would not come at all."""
    with hanging(patient, name):
        # The gateway gives an answer again for a second.
        until(lambda: names(patient.http.get(patient.url("gateway", "/health")), name), 30, f"health to name {name}")


@pytest.mark.parametrize("name", ["gateway", "contract", "download", "controller"])
def test_a_member_that_hangs_is_replaced_and_no_answer_is_lost(mesh: RunningMesh, name: str) -> None:
    hung = mesh.processes()[name]
    with Requests(mesh) as requests:
        until(lambda: requests.answered > 2, 30, "answers before it")
        hung.send_signal(signal.SIGSTOP)
        until(lambda: ended(hung), 60, f"the end of {name}")
        until(mesh.healthy, 60, "a healthy mesh")
        answered = requests.answered
        until(lambda: requests.answered > answered + 2, 30, "answers after it")
    assert requests.failed == []
    assert f"{name} left 5 liveness probes in a row unanswered; it is killed\n" in said(mesh)
    assert f"{name} was ended by SIGKILL; starting it again\n" in said(mesh)


def test_a_member_that_hangs_as_soon_as_it_serves_is_not_taken_for_one_that_starts(mesh: RunningMesh) -> None:
    killed = mesh.processes()["controller"]
    killed.kill()
    killed.wait(10)
    hung = until(lambda: mesh.processes().get("controller"), 60, "its successor")
    until(lambda: listens(mesh, "controller"), 60, "it to serve")
    hung.send_signal(signal.SIGSTOP)
    # A start may take 15 times the patience.
    until(lambda: ended(hung), 8 * PATIENCE, "the end of it")
    until(mesh.healthy, 60, "a healthy mesh")


def test_envoy_that_hangs_is_replaced(mesh: RunningMesh) -> None:
    hung = mesh.processes()["envoy"]
    hung.send_signal(signal.SIGSTOP)
    until(lambda: ended(hung), 60, "the end of Envoy")
    until(mesh.healthy, 60, "a healthy mesh")
    with Requests(mesh) as requests:
        until(lambda: requests.answered > 2, 30, "answers after it")
    assert "envoy left 5 liveness probes in a row unanswered; it is killed\n" in said(mesh)


@pytest.mark.parametrize("name", ["gateway", "envoy"])
def test_commands_end_in_a_bounded_time_while_it_hangs(patient: RunningMesh, name: str) -> None:
    environment = {**patient.environment, "LLAMESH_TOKEN": patient.token, "XDG_CONFIG_HOME": str(patient.home)}
    with hanging(patient, name):
        for command, code, words in (("doctor", 1, name), ("status", 6, "error: ")):
            done = subprocess.run(
                [sys.executable, "-m", "llamesh.cli.main", command],
                env=environment,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            assert done.returncode == code, done.stdout + done.stderr
            assert words in done.stdout + done.stderr


def test_doctor_names_restarted_members(mesh: RunningMesh) -> None:
    hung = mesh.processes()["download"]
    hung.send_signal(signal.SIGSTOP)
    until(lambda: ended(hung), 60, "the end of download")
    until(mesh.healthy, 60, "a healthy mesh")
    shown = subprocess.run(
        [sys.executable, "-m", "llamesh.cli.main", "doctor"],
        env=mesh.environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    assert "because it did not answer)" in shown.stdout, shown.stdout


@pytest.mark.parametrize("name", ["gateway", "contract", "download"])
def test_a_member_whose_socket_was_removed_is_reachable_again(mesh: RunningMesh, name: str) -> None:
    before = mesh.processes()[name]
    (mesh.home / "run" / f"{name}.sock").unlink()
    until(lambda: mesh.processes().get(name) not in (None, before) and mesh.healthy(), 60, f"{name} to be reachable")
