"""A duplicate of a listening socket keeps what waits in it, and turns it away so that it is sent again, once and for all."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llamesh import listeners, names

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc/net/unix")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "l.sock")


def listening(path: str, backlog: int = 5) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(backlog)
    return listener


async def answer(path: str, body: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"POST / HTTP/1.1\r\n\r\n" + body)
    try:
        return await reader.read()
    finally:
        writer.close()


async def until_waiting(path: str, count: int) -> None:
    async with asyncio.timeout(10):
        while Path("/proc/net/unix").read_text().count(f" {path}\n") < count + 1:
            await asyncio.sleep(0.01)


async def test_waiting_requests_get_503_and_new_clients_are_refused(path: str) -> None:
    served = listening(path)
    duplicate = listeners.own(path)
    duplicate.listen(listeners.BACKLOG)
    # One sends more than a socket holds: it must be able to read the answer all the same.
    asked = [asyncio.create_task(answer(path, b"x" * size)) for size in (0,) * 20 + (4 << 20,)]
    await until_waiting(path, 21)
    served.close()
    assert await listeners.turn_away(duplicate) == 21
    for text in await asyncio.gather(*asked):
        head = text.partition(b"\r\n\r\n")[0].decode().lower().split("\r\n")
        assert head[0] == "http/1.1 503 service unavailable"
        assert f"{names.RETRY_HEADER}: 1" in head
    with pytest.raises(ConnectionRefusedError):
        await answer(path)


async def test_any_duplicate_closes_the_door_of_all(path: str) -> None:
    served, other = listening(path), listeners.own(path)
    assert await listeners.turn_away(listeners.own(path)) == 0
    with pytest.raises(ConnectionRefusedError):
        await answer(path)
    assert await listeners.turn_away(other) == 0
    served.close()


async def test_a_connection_that_was_accepted_is_left_alone(path: str) -> None:
    served = listening(path)
    asked = asyncio.create_task(answer(path))
    await until_waiting(path, 1)
    accepted, _ = served.accept()
    assert await listeners.turn_away(listeners.own(path)) == 0
    assert accepted.recv(1000)
    accepted.sendall(b"mine")
    accepted.close()
    served.close()
    assert await asked == b"mine"


async def test_more_than_the_descriptors_allow_are_turned_away(path: str) -> None:
    served = listening(path, 400)
    asked = [asyncio.create_task(answer(path)) for _ in range(300)]
    await until_waiting(path, 300)
    assert await listeners.turn_away(listeners.own(path)) == 300
    assert all(names.RETRY_HEADER.encode() in text for text in await asyncio.gather(*asked))
    served.close()


def test_a_listener_is_handed_over(path: str) -> None:
    served = listening(path)
    here, there = socket.socketpair()
    with here, there:
        listeners.hand_over(here, served)
        taken = listeners.taken(there)
        assert taken is not None
        assert taken.getsockname() == path
        taken.close()
        here.close()
        assert listeners.taken(there) is None
    served.close()


def test_a_child_s_listener_is_duplicated(path: str) -> None:
    program = (
        f"import socket, sys; s = socket.socket(1); s.bind({path!r}); s.listen(); print(flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline()
    duplicate = listeners.of_process(child.pid, path)
    child.communicate()
    with duplicate, socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        duplicate.accept()[0].close()


def test_a_listener_that_cannot_be_duplicated_is_an_error_with_a_message(path: str) -> None:
    with pytest.raises(listeners.NoListenerError, match="no socket that listens at"):
        listeners.own(path)
    with pytest.raises(listeners.NoListenerError, match="no socket that listens at"):
        listeners.of_process(os.getpid(), path)


def test_a_socket_has_vanished_if_its_own_process_listens_without_a_path(path: str) -> None:
    assert not listeners.has_vanished(Path(path), os.getpid())
    with listening(path):
        assert not listeners.has_vanished(Path(path), os.getpid())
        Path(path).unlink()
        assert listeners.has_vanished(Path(path), os.getpid())


def test_a_socket_has_not_vanished_while_only_an_earlier_process_listens_at_its_path(path: str) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with listening(path):
            Path(path).unlink()
            assert not listeners.has_vanished(Path(path), other.pid)
    finally:
        other.communicate()
