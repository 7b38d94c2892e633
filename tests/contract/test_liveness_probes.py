"""What a liveness probe takes for an answer: a member's event loop that runs, an Envoy that says anything."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamesh.cli.mesh.envoy import admin_socket
from llamesh.cli.mesh.liveness import Answer, EnvoyProbe, MemberProbe
from llamesh.cli.mesh.settings import MeshSettings
from tests.unit.test_start_names_what_prevents_it import settings

MEMBER = """
import asyncio, sys, time
import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1._async import HealthServicer

async def main():
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    server.add_insecure_port("unix:" + sys.argv[1])
    await server.start()
    print("serving", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print("blocked", flush=True)
    time.sleep(60)

asyncio.run(main())
"""
"""A member as the kit makes it, whose event loop blocks when it is told to."""


async def test_a_member_whose_event_loop_is_blocked_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "member.sock"
    probe = MemberProbe(path)
    assert await probe(5) is Answer.NOBODY
    command = [sys.executable, "-c", MEMBER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            assert await probe(20) is Answer.GIVEN
            process.stdin.write("block\n")
            process.stdin.flush()
            assert process.stdout.readline() == "blocked\n"
            assert await probe(0.3) is Answer.NONE
            process.send_signal(signal.SIGSTOP)
            assert await probe(0.3) is Answer.NONE
        finally:
            process.kill()
    # The socket's file is still there.
    assert await probe(5) is Answer.NOBODY


async def test_a_member_whose_socket_is_gone_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "member.sock"
    command = [sys.executable, "-c", MEMBER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            probe = MemberProbe(path)
            assert await probe(20) is Answer.GIVEN
            path.unlink()
            assert await probe(5) is Answer.NOBODY
        finally:
            process.kill()


@contextmanager
def answering(server: socket.socket, status: str) -> Iterator[None]:
    """Answer one request with a status; silent without one."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())

    thread = threading.Thread(target=serve)
    if status:
        thread.start()
    yield
    if status:
        thread.join()


@pytest.fixture
def mesh(tmp_path: Path) -> MeshSettings:
    (tmp_path / "run").mkdir()
    return settings(tmp_path)


@pytest.mark.parametrize(
    ("status", "answer"),
    [("200 OK", Answer.GIVEN), ("503 Service Unavailable", Answer.GIVEN), ("", Answer.NONE)],
)
async def test_envoy_answers_if_its_main_thread_does_with_any_status(
    mesh: MeshSettings, status: str, answer: Answer
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(admin_socket(mesh)))
        server.listen()
        with answering(server, status):
            assert await EnvoyProbe(mesh)(20 if status else 0.3) is answer


@pytest.mark.parametrize(("status", "answer"), [("504 Gateway Timeout", Answer.GIVEN), ("", Answer.NONE)])
async def test_envoy_whose_admin_socket_is_gone_is_asked_at_its_front_door(
    mesh: MeshSettings, status: str, answer: Answer
) -> None:
    from dataclasses import replace

    with socket.create_server(("127.0.0.1", 0)) as server:
        there = replace(mesh, gateway_port=server.getsockname()[1])
        with answering(server, status):
            assert await EnvoyProbe(there)(20 if status else 0.3) is answer


async def test_envoy_that_is_gone_does_not_answer(mesh: MeshSettings) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(admin_socket(mesh)))
    assert await EnvoyProbe(mesh)(1) is Answer.NOBODY
