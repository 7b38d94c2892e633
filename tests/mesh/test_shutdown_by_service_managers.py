"""A service manager that sends SIGTERM to every process at the same moment, or again and again, cuts no running answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.mesh.running import RunningMesh, running_mesh, until
from tests.processes import left_behind, mesh_processes, send_all

LONG = {"model": "sentence.gguf", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True, "stream": True}


@pytest.fixture
def notified() -> Iterator[socket.socket]:
    """The receiving end of a service manager (a labelled fake of systemd's): NOTIFY_SOCKET names it."""
    with tempfile.TemporaryDirectory(prefix="sd-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"{folder}/notify")
        end.settimeout(0)
        yield end


@contextmanager
def serving(**settings: str) -> Iterator[RunningMesh]:
    with running_mesh(LLAMESH_DRAIN_SECONDS="200", **settings) as mesh:
        mesh.add_model("sentence", "sentence.gguf")
        mesh.serve("sentence", runtime_params="--ctx-size 16384 --parallel 1")
        yield mesh


def messages(end: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(end.recv(4096).decode())
        except BlockingIOError:
            return found


def everything(mesh: RunningMesh) -> list[psutil.Process]:
    assert mesh.process is not None
    return [psutil.Process(mesh.process.pid), *mesh_processes(mesh.home)]


def finish_during(mesh: RunningMesh, ending: Any, tokens: int = 3000) -> str:
    """Run one long answer, call `ending` once its first word is there, and return the last line of the answer."""
    with mesh.http.stream(
        "POST", mesh.url("inference", "/v1/chat/completions"), json={**LONG, "max_tokens": tokens}
    ) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        ending()
        *_, last = [line for line in lines if line]
    return last


def test_sigterm_to_every_process_at_once_cuts_no_answer_and_leaves_nothing(notified: socket.socket) -> None:
    with serving(NOTIFY_SOCKET=notified.getsockname()) as mesh:
        assert mesh.process is not None
        found = everything(mesh)
        assert len(found) >= 8  # supervisor, three services, controller, Envoy, engine, llama.cpp
        assert any(message.startswith("READY=1\nSTATUS=ready") for message in messages(notified))

        assert finish_during(mesh, lambda: send_all(found, signal.SIGTERM)) == "data: [DONE]"
        assert mesh.process.wait(60) == 0
        assert any(message.startswith("STOPPING=1") for message in messages(notified))
        assert not (mesh.home / "run").exists()


def test_sigterm_again_and_again_cuts_no_answer() -> None:
    with serving() as mesh:
        assert mesh.process is not None
        process = mesh.process

        def repeatedly() -> None:
            for _ in range(5):
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGHUP)
                time.sleep(0.05)  # a signal that is pending already would be merged with the next one

        assert finish_during(mesh, repeatedly) == "data: [DONE]"
        assert process.wait(60) == 0


@pytest.mark.parametrize("forced", [(signal.SIGINT, signal.SIGINT), (signal.SIGQUIT,)])
def test_a_person_can_end_it_at_once(forced: tuple[signal.Signals, ...]) -> None:
    with serving() as mesh:
        assert mesh.process is not None
        process = mesh.process
        with mesh.http.stream(
            "POST", mesh.url("inference", "/v1/chat/completions"), json={**LONG, "max_tokens": 16000}
        ) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
            for number in forced:
                process.send_signal(number)
                until(lambda: "stopping" in (mesh.home.parent / "up.log").read_text() or len(forced) == 1)
            # Far less than the drain may take.
            assert process.wait(60) == 130
        assert left_behind(mesh.home) == []
        assert not (mesh.home / "run").exists()


def test_a_mesh_that_was_killed_leaves_nothing_after_the_next_one() -> None:
    with running_mesh() as mesh:
        assert mesh.process is not None
        (mesh.home / "run" / "engines").mkdir(exist_ok=True)
        (mesh.home / "run" / "engines" / "0f0c6a0e-00.json").write_text('{"pid": "garbage", "started": []}')
        (mesh.home / "run" / "processes.json").write_bytes(os.urandom(64))
        mesh.process.kill()
        mesh.process.wait()
        # The next one cannot wait for what still ends: the records are garbage.
        assert left_behind(mesh.home) == []
        mesh.start()
        assert not (mesh.home / "run" / "engines" / "0f0c6a0e-00.json").exists()
        mesh.process.send_signal(signal.SIGTERM)
        assert mesh.process.wait(60) == 0
        assert not (mesh.home / "run").exists()


ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_program_started_through_the_tether_is_not_ended_by_sigterm() -> None:
    import sys

    from llamesh.cli.mesh.envoy import TETHER

    # It installs a handler of its own, as Envoy and llama-server do.
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_DFL); print('up', flush=True); time.sleep(60)"
    command = [sys.executable, "-I", "-S", str(TETHER), str(os.getpid()), sys.executable, "-S", "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
