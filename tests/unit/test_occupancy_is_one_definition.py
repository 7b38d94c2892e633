"""Busy means the same to everybody: requests that llama.cpp counts, or clients that are connected, as the kernel says."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from llamesh.kit.occupancy import ConnectionTable, Counters, client_connections, is_busy

METRICS = b"""# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 1200
llamacpp:prompt_seconds_total 6
llamacpp:tokens_predicted_total 30
llamacpp:n_decode_total 40
llamacpp:prompt_tokens_seconds 200
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
"""


def test_the_counters_of_llama_cpp_are_read() -> None:
    assert Counters.read(METRICS) == Counters(requests=3, work=1270.0, prompt_rate=200.0)
    assert Counters.read(b"") == Counters(requests=0, work=0.0, prompt_rate=None)
    with pytest.raises(ValueError, match="nonsense"):
        Counters.read(b"llamacpp:n_decode_total nonsense")


@pytest.mark.parametrize(
    ("requests", "connections", "busy"),
    [(0, 0, False), (1, 0, True), (0, 1, True), (0, None, False), (2, None, True)],
)
def test_the_definition(requests: int, connections: int | None, busy: bool) -> None:
    assert is_busy(requests, connections) is busy


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/net/unix")
def test_clients_of_a_unix_socket_are_counted_even_after_its_path_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert client_connections(path, os.getpid()) == 0
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            server, _ = listener.accept()
            assert client_connections(path, os.getpid()) == 1
            path.unlink()
            assert client_connections(path, os.getpid()) == 1
            assert client_connections(path, os.getppid()) == 0
            server.close()
        assert client_connections(path, os.getpid()) == 0


async def test_a_round_over_a_hundred_idle_engines_reads_the_kernels_table_twice_at_most() -> None:
    reads = 0

    def read() -> dict[str, set[str]]:
        nonlocal reads
        reads += 1
        return {}

    table = ConnectionTable(read)
    for rounds in range(1, 4):
        assert await asyncio.gather(*(table.clients(Path(f"{index}.sock"), 1) for index in range(100))) == [0] * 100
        assert reads <= 2 * rounds


async def test_an_answer_is_newer_than_its_question_and_survives_a_cancelled_waiter() -> None:
    now: dict[str, set[str]] = {}
    with socket.socket(socket.AF_UNIX) as ours:
        inode = str(os.fstat(ours.fileno()).st_ino)
        table = ConnectionTable(lambda: dict(now))
        assert await table.clients(Path("e.sock"), os.getpid()) == 0
        first = asyncio.create_task(table.clients(Path("e.sock"), os.getpid()))
        await asyncio.sleep(0)
        now["e.sock"] = {inode}
        second = asyncio.create_task(table.clients(Path("e.sock"), os.getpid()))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == 1


async def test_the_number_of_clients_is_unknown_if_the_system_does_not_tell() -> None:
    assert await ConnectionTable(lambda: None).clients(Path("e.sock"), 1) is None
