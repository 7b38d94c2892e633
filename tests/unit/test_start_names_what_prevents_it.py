"""What `llamesh up` checks before it starts anything, and the program that ties Envoy to its supervisor."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from llamesh.cli.failure import CommandError
from llamesh.cli.mesh import before_start, checks, leftovers, ports
from llamesh.cli.mesh.envoy import TETHER
from llamesh.cli.mesh.lock import MeshRunningError, held, holder
from llamesh.cli.mesh.settings import MeshSettings, read_settings
from llamesh.local_mesh import Addresses
from llamesh.locations import run_directory
from llamesh.processes import ProcessId

ADDRESSES = Addresses("http://localhost:1", "http://localhost:2")


def settings(home: Path, port: int = 0) -> MeshSettings:
    return MeshSettings(
        home=home,
        run_dir=home / "run",
        bind="127.0.0.1",
        public_host="localhost",
        inference_port=port,
        gateway_port=0,
        contract_port=0,
        download_port=0,
        drain_seconds=1,
        member_patience_seconds=20,
    )


def test_a_taken_port_is_named_with_its_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (problem,) = ports.taken(["127.0.0.1"], {"LLAMESH_GATEWAY_PORT": port, "LLAMESH_CONTRACT_PORT": 0})
    assert problem.words.startswith(f"port {port} is taken by process {os.getpid()} (")
    assert problem.words.endswith("LLAMESH_GATEWAY_PORT moves it")


LISTENS = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for that of a socket, which pytest's own may not."""
    with tempfile.TemporaryDirectory(prefix="short-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", ["their home", "a home with a path that is long " * 4])
def test_a_port_of_the_mesh_of_another_home_is_freed_by_ending_that_mesh(short_folder: Path, name: str) -> None:
    home = short_folder / name.strip()
    run_dir = run_directory(home, {"XDG_RUNTIME_DIR": str(short_folder)})
    assert (run_dir == home / "run") is (name == "their home")
    home.mkdir()
    run_dir.mkdir()
    command = [sys.executable, "-c", LISTENS, "--config-path", str(run_dir / "envoy.yaml")]
    with held(home, ADDRESSES), subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as envoy:
        leftovers.record(run_dir, {"envoy": leftovers.Life(ProcessId.of(envoy.pid))})
        assert envoy.stdout
        port = int(envoy.stdout.readline())
        problems = ports.taken(["127.0.0.1"], {"LLAMESH_GATEWAY_PORT": port})
        finding = checks.free_ports(settings(short_folder, port))
        envoy.communicate()
    assert problems[0].words.startswith(f"port {port} is taken by the mesh of {home}, process {envoy.pid} (")
    assert ports.remedy(problems) == finding.fix == f"`LLAMESH_HOME='{home}' llamesh down`, or choose another port"


def test_an_address_that_is_not_this_machines_is_one_problem_of_one_setting() -> None:
    ports_of_a_mesh = {"LLAMESH_INFERENCE_PORT": 0, "LLAMESH_GATEWAY_PORT": 0, "LLAMESH_CONTRACT_PORT": 0}
    (problem,) = problems = ports.taken(["192.0.2.1"], ports_of_a_mesh)
    assert problem.words == f"LLAMESH_BIND is 192.0.2.1: {os.strerror(errno.EADDRNOTAVAIL)}"
    assert ports.remedy(problems).startswith("set LLAMESH_BIND to an address of this machine")
    taken = ports.PortProblem("port 1 is taken")
    assert ports.remedy([problem, taken]).endswith("; end that process, or choose another port")


def test_one_port_for_two_listeners_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (problem,) = ports.taken(["127.0.0.1"], {"LLAMESH_INFERENCE_PORT": port, "LLAMESH_GATEWAY_PORT": port})
    assert problem.words == f"LLAMESH_INFERENCE_PORT and LLAMESH_GATEWAY_PORT are both {port}"


def free_ports() -> dict[str, str]:
    """Settings of a mesh beside others."""
    return {f"LLAMESH_{name}_PORT": "0" for name in ("INFERENCE", "GATEWAY", "CONTRACT", "DOWNLOAD")}


@contextmanager
def one_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_ports_that_the_settings_rule_out_are_a_mistake_in_them_and_no_process_is_blamed(tmp_path: Path) -> None:
    with one_port() as port:
        pass
    twice = replace(settings(tmp_path, port), gateway_port=port)
    with pytest.raises(CommandError) as refused:
        list(before_start.check_machine(twice))
    assert (refused.value.code, refused.value.hint) == (2, "choose another port")


def test_a_taken_port_may_be_free_at_the_next_start(tmp_path: Path) -> None:
    with one_port() as port, pytest.raises(CommandError) as refused:
        list(before_start.check_machine(settings(tmp_path, port)))
    assert (refused.value.code, refused.value.hint) == (1, "end that process, or choose another port")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LLAMESH_HOME", "/proc/nope", "/proc/nope cannot be used"),
        ("LLAMESH_HOME", "/dev/null", "/dev/null cannot be used"),
        ("ENVOY_BIN", "/nowhere/envoy", "ENVOY_BIN names /nowhere/envoy"),
    ],
)
def test_a_setting_that_only_a_person_can_correct_exits_2(name: str, value: str, words: str, tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "llamesh.cli.main", "up"],
        env={**os.environ, "LLAMESH_HOME": str(tmp_path), **free_ports(), name: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr


def test_a_disk_that_is_full_may_have_space_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(before_start, "make_private", full)
    with pytest.raises(CommandError) as refused:
        before_start.make_usable(tmp_path)
    assert refused.value.code == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LLAMESH_GATEWAY_PORT", "99999", "'99999' is not a whole number from 0 to 65535"),
        ("DATABASE_URL", "mysql://ada:secret@db/x", "must begin with postgresql://"),
        ("LLAMESH_CONFIG", "/nowhere/at/all", "there is no file /nowhere/at/all"),
        ("MAX_REPLICAS", "many", "'many' is not a whole number from 1 to 1000"),
    ],
)
def test_a_setting_that_cannot_be_is_named_without_its_secrets(
    name: str, value: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(CommandError) as refused:
        read_settings({"PATH": os.environ["PATH"], "HOME": str(tmp_path), name: value})
    shown = refused.value.render()
    assert (refused.value.code, f"setting {name}: " in shown, words in shown) == (2, True, True), shown
    assert "secret" not in shown


def test_a_full_disk_is_said_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = SimpleNamespace(f_bavail=10, f_blocks=100, f_frsize=2**20)
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(CommandError, match="10 MiB are free, 200 are needed"):
        list(before_start.check_machine(settings(tmp_path)))
    assert checks.disk(settings(tmp_path)).state == "problem"


def test_a_clock_that_runs_behind_is_found() -> None:
    assert checks.clock(lambda: 0.0).state == "problem"
    assert checks.clock().state == "ok"


def test_one_mesh_for_each_home(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with held(tmp_path, ADDRESSES):
        found = holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
        with pytest.raises(MeshRunningError), held(tmp_path, ADDRESSES):
            pass
    assert holder(tmp_path) is None


def test_a_lock_file_that_is_not_held_names_no_process(tmp_path: Path) -> None:
    (tmp_path / "mesh.lock").write_text(f'{{"pid": {os.getpid()}, "started": "1"}}')
    assert holder(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's wish to end with the parent is Linux's")
def test_a_tethered_program_does_not_start_if_its_parent_has_ended() -> None:
    late = subprocess.run(
        [sys.executable, "-I", "-S", TETHER, "1", "/bin/echo", "started"], capture_output=True, check=False
    )
    assert (late.returncode, late.stdout) == (1, b"")
    in_time = subprocess.run(
        [sys.executable, "-I", "-S", TETHER, str(os.getpid()), "/bin/echo", "started"], capture_output=True, check=False
    )
    assert (in_time.returncode, in_time.stdout) == (0, b"started\n")
