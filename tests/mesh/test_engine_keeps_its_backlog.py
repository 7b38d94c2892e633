"""What waits in the backlog of llama.cpp when it dies is told to be sent again: by the supervising process, or by who holds a duplicate."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from engine import sentence
from llamesh import listeners
from tests.mesh.engines import DEADLINE, LLAMA_SERVER_BIN, Engine, engine, stop
from tests.mesh.llama_program import write_program

WAITING = 40


@contextlib.asynccontextmanager
async def running(folder: Path, form: str) -> AsyncIterator[Engine]:
    """An engine that is ready and has its duplicate."""
    model = sentence.write(folder / "m.gguf")
    program = write_program(folder / "llama-server")
    llama = {"program": str(program), "embedded": "embedded", "configured": LLAMA_SERVER_BIN}[form]
    hand = folder / "e" / "e.hand"
    async with engine(folder / "e", model, environment={"LLAMA_SERVER_BIN": llama}, hand_over=str(hand)) as it:
        await it.until("ready")
        yield it


async def handed_over(it: Engine) -> socket.socket:
    """The duplicate that an engine gives to who asks."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        asking.connect(str(it.socket.with_suffix(".hand")))
        async with asyncio.timeout(DEADLINE):
            await listeners.readable(asking.fileno())
        given = listeners.taken(asking)
    assert given is not None, it.log
    return given


async def ask(it: Engine) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(it.socket))
    writer.write(b"GET /health HTTP/1.1\r\nhost: engine\r\n\r\n")
    try:
        return await reader.read()
    finally:
        writer.close()


async def waiting(it: Engine) -> list[asyncio.Task[bytes]]:
    """Requests in the backlog of an engine that is stopped, more than llama.cpp's own would hold."""
    (child,) = it.children()
    await stop(child)
    asked = [asyncio.create_task(ask(it)) for _ in range(WAITING)]
    async with asyncio.timeout(DEADLINE):
        while sum(f" 02     0 {it.socket}" in row for row in Path("/proc/net/unix").read_text().splitlines()) < WAITING:
            await asyncio.sleep(0.01)
    return asked


@pytest.mark.parametrize("form", ["embedded", "program", "configured"])
async def test_the_backlog_of_a_killed_llama_cpp_is_told_to_try_again(tmp_path: Path, form: str) -> None:
    async with running(tmp_path, form) as it:
        (await handed_over(it)).close()
        asked = await waiting(it)
        os.kill(it.children()[0], signal.SIGKILL)
        assert all(b"x-llamesh-retry: 1" in text for text in await asyncio.gather(*asked))
        with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
            await ask(it)
        assert await it.ended() != 0
        assert "40 requests that llama.cpp had not accepted are sent again" in it.log
        assert not it.socket.with_suffix(".hand").exists()


@pytest.mark.parametrize("form", ["embedded", "program"])
async def test_the_holder_of_a_duplicate_answers_for_an_engine_that_is_killed_as_a_whole(
    tmp_path: Path, form: str
) -> None:
    async with running(tmp_path, form) as it:
        held = await handed_over(it)
        asked = await waiting(it)
        it.process.send_signal(signal.SIGKILL)
        await it.process.wait()
        assert await listeners.turn_away(held) == WAITING
        assert all(b"x-llamesh-retry: 1" in text for text in await asyncio.gather(*asked))


async def test_an_engine_that_ends_in_order_answers_all_waiting_requests(tmp_path: Path) -> None:
    async with running(tmp_path, "embedded") as it:
        held = await handed_over(it)
        asked = await waiting(it)
        # Told twice to end: at once, with a llama.cpp that accepts nothing.
        it.process.send_signal(signal.SIGTERM)
        await it.until("draining")
        it.process.send_signal(signal.SIGTERM)
        assert all(b"x-llamesh-retry: 1" in text for text in await asyncio.gather(*asked))
        assert await it.ended() == 0
        # The duplicate that is held elsewhere lets nobody in either.
        assert await listeners.turn_away(held) == 0
