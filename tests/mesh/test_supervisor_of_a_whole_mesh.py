"""`llamesh up` with everything real: what it refuses, how it ends, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pexpect
import psutil
import pytest

from tests.mesh.running import COMMAND_SECONDS, RunningMesh, running_mesh, until
from tests.ports import free_ports
from tests.processes import ended, kill_all, left_behind, mesh_processes

LLAMESH = [sys.executable, "-m", "llamesh.cli.main"]


def llamesh(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LLAMESH, *arguments], env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
    )


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with running_mesh() as running:
        yield running


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        yield Path(folder) / "home"


@pytest.fixture
def environment(home: Path) -> Iterator[dict[str, str]]:
    """A mesh's own, on free ports; whatever was started in it is ended after the test."""
    names = ("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD")
    ports = {f"LLAMESH_{name}_PORT": str(port) for name, port in zip(names, free_ports(4), strict=True)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "JWT_"))}
    yield {
        **kept,
        **ports,
        "LLAMESH_HOME": str(home),
        "LLAMESH_URL": f"http://localhost:{ports['LLAMESH_GATEWAY_PORT']}",
        "XDG_CONFIG_HOME": str(home.parent / "config"),
    }
    kill_all(mesh_processes(home))


def below_supervisor(home: Path) -> tuple[list[psutil.Process], psutil.Process]:
    """The processes of a detached mesh, and their supervisor."""
    below = mesh_processes(home)
    supervisors = {parent for process in below if (parent := _parent(process))} - set(below)
    assert len(supervisors) == 1, supervisors
    return below, supervisors.pop()


def _parent(process: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):  # it may end at any moment
        return process.parent()
    return None


def test_a_second_mesh_of_the_same_home_is_refused(mesh: RunningMesh) -> None:
    assert mesh.process is not None
    with mesh.without_restarts():
        refused = llamesh(mesh.environment, "up")
    assert refused.returncode == 1
    assert f"(process {mesh.process.pid})" in refused.stderr


def test_a_port_that_is_taken_is_named_with_its_owner(mesh: RunningMesh, home: Path) -> None:
    refused = llamesh({**mesh.environment, "LLAMESH_HOME": str(home)}, "up")
    assert refused.returncode == 1
    for name, port in mesh.ports.items():
        owner = mesh.processes()["envoy"]
        taken = f"port {port} is taken by the mesh of {mesh.home}, process {owner.pid} (envoy)"
        assert f"{taken}; LLAMESH_{name.upper()}_PORT moves it" in refused.stderr
    assert f"hint: `LLAMESH_HOME={mesh.home} llamesh down`" in refused.stderr
    assert left_behind(home) == []


def test_a_wrong_setting_is_named_before_anything_starts(environment: dict[str, str], home: Path) -> None:
    refused = llamesh({**environment, "JWT_SECRET": "short"}, "up")
    assert refused.returncode == 2
    assert "JWT_SECRET" in refused.stderr
    assert "short" not in refused.stderr
    assert not home.exists()


def test_a_missing_envoy_ends_the_start_with_its_name(environment: dict[str, str]) -> None:
    refused = llamesh({**environment, "ENVOY_BIN": "/nowhere/envoy"}, "up")
    assert refused.returncode == 2
    assert "ENVOY_BIN names /nowhere/envoy" in refused.stderr


def test_doctor_finds_a_healthy_mesh_healthy(mesh: RunningMesh) -> None:
    # A member that a busy machine keeps from answering within a second is down for a second.
    found = until(
        lambda: (ran := llamesh(mesh.environment, "doctor", "-o", "json")).returncode == 0 and ran, 60, "health"
    )
    findings = {item["check"]: item["state"] for item in json.loads(found.stdout)}
    assert {"gateway", "contract", "download", "controller", "envoy", "disk", "clock"} <= set(findings)


def test_doctor_names_problems_and_their_remedies(mesh: RunningMesh, home: Path) -> None:
    found = llamesh({**mesh.environment, "LLAMESH_HOME": str(home), "ENVOY_BIN": "/nowhere"}, "doctor")
    assert found.returncode == 1
    assert f"port {mesh.ports['gateway']} is taken" in found.stdout
    assert "or set ENVOY_BIN" in found.stdout


def test_another_shell_finds_the_mesh_at_its_ports(mesh: RunningMesh, tmp_path: Path) -> None:
    shell = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMESH_", "JWT_"))}
    shell |= {"LLAMESH_HOME": str(mesh.home), "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    unsigned = llamesh(shell, "status")
    assert (unsigned.returncode, unsigned.stderr.splitlines()[0]) == (4, "error: you are not signed in")
    login = subprocess.run(
        [*LLAMESH, "login", "admin", "--password-stdin"], env=shell, input="admin\n", text=True, capture_output=True
    )
    assert f"localhost:{mesh.ports['gateway']}" in login.stderr
    assert llamesh(shell, "status", "-o", "json").stdout == "[]\n"
    nobody = llamesh(shell, "chat", "nope", "Hi")
    assert (nobody.returncode, "nothing is served yet" in nobody.stderr) == (3, True), nobody.stderr
    until(lambda: llamesh(shell, "doctor").returncode == 0, 60, "a healthy mesh")
    elsewhere = llamesh({**shell, "LLAMESH_URL": "http://127.0.0.1:1"}, "status")
    assert elsewhere.returncode == 6


def test_logs_of_a_component_are_read(mesh: RunningMesh) -> None:
    found = llamesh(mesh.environment, "logs", "gateway", "--tail", "1000")
    assert found.returncode == 0
    assert '"event": "serving"' in found.stdout


def test_each_component_that_is_killed_comes_back(mesh: RunningMesh) -> None:
    before = mesh.processes()
    for name in ("gateway", "contract", "download", "controller", "envoy"):
        before[name].kill()

    def all_new() -> bool:
        now = mesh.processes()
        return all(name in now and now[name] != before[name] for name in before if name != "supervisor")

    until(lambda: all_new() and mesh.healthy(), 60, "the whole mesh to be back")
    assert mesh.processes()["supervisor"] == before["supervisor"]


def test_detached_it_stays_until_down_and_a_killed_supervisor_leaves_nothing(
    environment: dict[str, str], home: Path
) -> None:
    assert llamesh(environment, "down").returncode == 0
    up = llamesh(environment, "up", "--detach")
    assert up.returncode == 0, up.stderr
    assert environment["LLAMESH_URL"] in llamesh(environment, "version").stdout
    version = json.loads(llamesh(environment, "version", "-o", "json").stdout)
    assert version["mesh_version"] == version["version"]
    log = home / "logs" / "supervisor.log"
    written = log.read_text()
    assert "the mesh is ready" in written
    again = llamesh(environment, "up", "--detach")
    assert again.returncode == 1
    assert "running already" in again.stderr
    assert log.read_text() == written

    below, supervisor = below_supervisor(home)
    supervisor.kill()
    # At once: what is still ending is waited for, and its sockets are not in the way.
    up = llamesh(environment, "up", "--detach")
    assert up.returncode == 0, up.stderr
    until(lambda: all(ended(process) for process in below), 30, "the end of every process")

    down = llamesh(environment, "down")
    assert down.returncode == 0
    assert down.stderr.endswith("stopped\n")
    assert left_behind(home) == []
    assert not (home / "run").exists()


def test_a_setting_that_a_member_refuses_ends_the_start_with_its_message(
    environment: dict[str, str], home: Path
) -> None:
    refused = llamesh({**environment, "LLAMESH_BIND": "0.0.0.0"}, "up")
    assert refused.returncode == 2
    assert "LLAMESH_ADMIN_PASSWORD" in refused.stderr
    assert "starting it again" not in refused.stderr
    assert left_behind(home) == []
    assert not (home / "run").exists()


@pytest.mark.parametrize("content", [b"this is no database", b"SQLite format 3\0" + bytes(range(256)) * 64])
def test_a_damaged_database_ends_the_start_with_its_name_and_the_remedy(
    environment: dict[str, str], home: Path, content: bytes
) -> None:
    (home / "data").mkdir(parents=True, mode=0o700)
    damaged = home / "data" / "contract.db"
    damaged.write_bytes(content)
    refused = llamesh(environment, "up")
    assert refused.returncode == 2, refused.stderr
    assert "contract.db" in refused.stderr
    assert "backup" in refused.stderr
    assert "sqlalche.me" not in refused.stderr
    assert "starting it again" not in refused.stderr
    assert damaged.read_bytes() == content
    assert left_behind(home) == []


def test_down_ends_a_supervisor_that_hangs_and_cleans_up_for_it(environment: dict[str, str], home: Path) -> None:
    assert llamesh(environment, "up", "--detach").returncode == 0
    below, supervisor = below_supervisor(home)
    supervisor.suspend()
    down = llamesh(environment, "down", "--timeout", "0.5")
    assert (down.returncode, "it is killed" in down.stderr) == (0, True)
    until(lambda: all(ended(process) for process in below), 30, "the end of every process")
    assert not (home / "run").exists()


def test_a_mesh_whose_home_is_removed_ends_and_names_the_home(mesh: RunningMesh) -> None:
    with mesh.without_restarts(), running_mesh() as doomed:
        assert doomed.process is not None
        # Again while a member makes a file in it.
        until(lambda: shutil.rmtree(doomed.home, ignore_errors=True) or not doomed.home.exists(), 30, "the removal")
        assert doomed.process.wait(60) == 130
        said = (doomed.home.parent / "up.log").read_text()
        assert f"{doomed.home} was removed while the mesh ran: the mesh ends" in said
        assert "Traceback" not in said


def test_ctrl_c_in_a_terminal_ends_it_cleanly(environment: dict[str, str], home: Path) -> None:
    terminal = pexpect.spawn(
        LLAMESH[0], [*LLAMESH[1:], "up"], env=environment, encoding="utf-8", timeout=COMMAND_SECONDS
    )  # type: ignore[arg-type]
    try:
        terminal.expect("the mesh is ready after")
        terminal.sendintr()
        terminal.expect("stopping")
        terminal.expect("stopped")
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 0
    finally:
        if terminal.isalive():
            terminal.kill(signal.SIGKILL)
        terminal.close()
    assert left_behind(home) == []


def test_running_answers_are_finished_before_the_end() -> None:
    with running_mesh(LLAMESH_DRAIN_SECONDS="200") as mesh:
        mesh.add_model("sentence", "sentence.gguf")
        mesh.serve("sentence", runtime_params="--ctx-size 4096 --parallel 1")
        assert mesh.process is not None
        body = {
            "model": "sentence.gguf",
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 3000,
            "ignore_eos": True,
            "stream": True,
        }
        with mesh.http.stream("POST", mesh.url("inference", "/v1/chat/completions"), json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            mesh.process.send_signal(signal.SIGINT)
            *_, last = [line for line in lines if line]
        assert last == "data: [DONE]"
        assert mesh.process.wait(60) == 0


def test_the_demo_answers_without_a_registry_and_is_idempotent(environment: dict[str, str]) -> None:
    offline = {**environment, "PIP_NO_INDEX": "1"}
    first = llamesh(offline, "up", "--demo", "--detach")
    assert first.returncode == 0, first.stderr
    assert "a stand-in that knows one sentence" in first.stderr
    assert "What is the capital of France?" in first.stdout
    assert f":{environment['LLAMESH_INFERENCE_PORT']}/v1" in first.stdout
    assert "admin / admin" in first.stdout
    assert llamesh(offline, "down").returncode == 0
    second = llamesh(offline, "up", "--demo", "--detach")
    assert second.returncode == 0, second.stderr
    assert "fetching" not in second.stderr
    # The first run logged this user in.
    assert len(llamesh(environment, "models", "--output", "name").stdout.split()) == 1
    assert len(llamesh(environment, "status", "--output", "name").stdout.split()) == 1
    answer = llamesh(environment, "chat", "sentence", "Hi", "--max-tokens", "8")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    assert llamesh(environment, "down").returncode == 0
