"""What another user writes into lock files and records, or gives a process as arguments, leads to no signal and no advice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from llamesh.cli.main import run
from llamesh.cli.mesh import leftovers, ports
from llamesh.cli.mesh.lock import held, holder
from llamesh.kit.ownership import HeldError, exclusive, lock_path
from llamesh.local_mesh import Addresses, lock_file
from llamesh.processes import ProcessId

ADDRESSES = Addresses("http://localhost:1", "http://localhost:2")
NOBODY = 65534
STRANGER = """
import fcntl, os, socket, sys
user, lock, words = int(sys.argv[1]), sys.argv[2], sys.argv[3]
descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
os.fchown(descriptor, user, -1)
os.setuid(user)
os.write(descriptor, words.encode())
fcntl.flock(descriptor, fcntl.LOCK_EX)
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""
"""A program of another user that holds a lock file of its own and listens at a port."""
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this user that has nothing to do with a mesh."""
    with subprocess.Popen(["/bin/sleep", "1000"]) as process:
        yield process
        process.kill()


@contextmanager
def stranger(lock: Path, named: ProcessId, *arguments: str, user: int = NOBODY) -> Iterator[tuple[int, int]]:
    """Hold a lock file that names a process; yield the pid and the port of the program."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    os.chown(lock.parent, user, -1)
    words = json.dumps({**asdict(named), "ending": False, **asdict(ADDRESSES)})
    command = [sys.executable, "-c", STRANGER, str(user), str(lock), words, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        yield process.pid, int(process.stdout.readline())
        process.communicate()


@only_root
def test_a_mesh_that_another_user_feigns_is_neither_named_nor_ended(
    tmp_path: Path, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "evil"
    bootstrap = str(home / "run" / "envoy.yaml")
    with stranger(lock_file(home), ProcessId.of(victim.pid), "--config-path", bootstrap) as (pid, port):
        leftovers.record(_made(home / "run"), {"envoy": leftovers.Life(ProcessId.of(pid))})
        problems = ports.taken(["127.0.0.1"], {"LLAMESH_GATEWAY_PORT": port})
        assert problems[0].words.startswith(f"port {port} is taken by process {pid} (")
        assert ports.remedy(problems) == "end that process, or choose another port"
        monkeypatch.setenv("LLAMESH_HOME", str(home))
        assert run(["down"]) == 1
        assert victim.poll() is None
    assert f"{lock_file(home)}: it belongs to user {NOBODY}, who alone may end that mesh" in capsys.readouterr().err


def test_a_program_with_the_arguments_of_envoy_is_not_the_envoy_of_a_mesh(tmp_path: Path) -> None:
    home = _made(tmp_path / "home")
    bootstrap = str(home / "run" / "envoy.yaml")
    with (
        held(home, ADDRESSES),
        stranger(tmp_path / "other.lock", ProcessId.of(1), "--config-path", bootstrap, user=os.geteuid()) as (pid, _),
    ):
        assert ports.mesh_of(pid) == ""
        leftovers.record(_made(home / "run"), {"envoy": leftovers.Life(ProcessId(pid, "before"))})
        assert ports.mesh_of(pid) == ""
        leftovers.record(home / "run", {"envoy": leftovers.Life(ProcessId.of(pid))})
        assert ports.mesh_of(pid) == str(home)


def test_a_lock_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(tmp_path, ADDRESSES):
        monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
        with pytest.raises(PermissionError, match="it belongs to user"):
            holder(tmp_path)


@only_root
async def test_a_member_advises_to_kill_no_process_that_another_user_names(
    tmp_path: Path, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamesh.kit.ownership.HELD_SECONDS", 0.0)
    with stranger(lock_path(tmp_path, "gateway"), ProcessId.of(victim.pid)):
        os.chown(tmp_path / "locks", 0, -1)
        with pytest.raises(HeldError, match="another process is already the gateway") as refused:
            async with exclusive(tmp_path, "gateway", 0.0):
                pass
    assert refused.value.holder is None


@only_root
def test_records_of_another_user_end_no_process(tmp_path: Path, victim: subprocess.Popen[bytes]) -> None:
    leftovers.record(tmp_path, {"envoy": leftovers.Life(ProcessId.of(victim.pid))})
    os.chown(tmp_path / "processes.json", NOBODY, -1)
    engine = _made(tmp_path / "engines") / "one.json"
    engine.write_text(json.dumps(asdict(ProcessId.of(victim.pid))))
    os.chown(engine, NOBODY, -1)
    assert leftovers.clear(tmp_path, tmp_path, grace=0.0) == 0
    assert victim.poll() is None


@only_root
def test_a_record_of_ones_own_ends_no_process_of_another_user(tmp_path: Path) -> None:
    with stranger(tmp_path / "other.lock", ProcessId.of(1)) as (pid, _):
        os.chown(tmp_path, 0, -1)
        leftovers.record(tmp_path, {"envoy": leftovers.Life(ProcessId.of(pid))})
        assert leftovers.clear(tmp_path, tmp_path, grace=0.0) == 0
        assert ProcessId.of(pid).alive


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder
