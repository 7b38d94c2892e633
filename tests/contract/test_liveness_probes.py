"""What a liveness probe takes for an answer: a member's event loop that runs, an Envoy that says anything."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llamesh.cli.mesh.envoy import admin_socket
from llamesh.cli.mesh.liveness import EnvoyProbe, MemberProbe
from llamesh.cli.mesh.settings import MeshSettings
from tests.unit.test_start_refuses_in_words import settings

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
    assert not await probe(5)
    command = [sys.executable, "-c", MEMBER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            assert await probe(20)
            process.stdin.write("block\n")
            process.stdin.flush()
            assert process.stdout.readline() == "blocked\n"
            assert not await probe(0.3)
        finally:
            process.kill()


async def test_a_member_whose_socket_is_gone_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "member.sock"
    command = [sys.executable, "-c", MEMBER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "serving\n"
            probe = MemberProbe(path)
            assert await probe(20)
            path.unlink()
            assert not await probe(5)
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


@pytest.mark.parametrize(("status", "alive"), [("200 OK", True), ("503 Service Unavailable", True), ("", False)])
async def test_envoy_answers_if_its_main_thread_does_whatever_it_says(
    mesh: MeshSettings, status: str, alive: bool
) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(admin_socket(mesh)))
        server.listen()
        with answering(server, status):
            assert await EnvoyProbe(mesh)(0.3 if not alive else 20) is alive


@pytest.mark.parametrize(("status", "alive"), [("504 Gateway Timeout", True), ("", False)])
async def test_envoy_whose_admin_socket_is_gone_is_asked_at_its_front_door(
    mesh: MeshSettings, status: str, alive: bool
) -> None:
    from dataclasses import replace

    with socket.create_server(("127.0.0.1", 0)) as server:
        there = replace(mesh, gateway_port=server.getsockname()[1])
        with answering(server, status):
            assert await EnvoyProbe(there)(0.3 if not alive else 20) is alive


async def test_envoy_that_is_gone_does_not_answer(mesh: MeshSettings) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(admin_socket(mesh)))
    assert not await EnvoyProbe(mesh)(1)
