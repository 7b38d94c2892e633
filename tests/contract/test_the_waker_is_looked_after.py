"""The waker listens again after every failure to do so, and its end waits for nobody."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import controller.waker
from controller.demand import Demand
from controller.request_holder import RequestHolder
from controller.status_cache import StatusCache
from controller.wake_tasks import WakeTasks
from controller.waker import Waker
from llamesh.kit.socket_watch import SocketWatch
from llamesh.v1 import server_pb2
from llamesh.v1.server_pb2 import Server
from tests.contract.patience import PATIENCE


@pytest.fixture
async def waker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Waker, RequestHolder, Path]]:
    """A waker with one server that starts for ever, looked at often."""
    monkeypatch.setattr(controller.waker, "SocketWatch", lambda path, listen: SocketWatch(path, listen, every=0.05))
    socket, statuses = tmp_path / "run" / "waker.sock", StatusCache()
    statuses.put(Server(server_uuid="a", model_name="m", state=server_pb2.SERVER_STATE_STARTING))

    async def wake(_: str) -> None:
        return

    demand = Demand()
    holder = RequestHolder(statuses, demand, WakeTasks(wake, demand), lambda _: None)
    made = Waker(holder, statuses, socket)
    await made.start()
    yield made, holder, socket
    await made.close()


async def test_the_waker_listens_again_once_its_path_is_free(waker: tuple[Waker, RequestHolder, Path]) -> None:
    _, _, socket = waker
    shutil.rmtree(socket.parent)
    socket.parent.write_text("in the way")
    await asyncio.sleep(0.5)  # Several tries fail.
    socket.parent.unlink()
    async with asyncio.timeout(PATIENCE):
        while not socket.exists():
            await asyncio.sleep(0.02)
        _, writer = await asyncio.open_unix_connection(str(socket))
        writer.close()


async def test_its_end_waits_for_no_held_request(waker: tuple[Waker, RequestHolder, Path]) -> None:
    made, holder, socket = waker
    reader, writer = await asyncio.open_unix_connection(str(socket))
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nx-llamesh-cluster: s:a\r\ncontent-length: 0\r\n\r\n")
    async with asyncio.timeout(PATIENCE):
        while not holder.held:
            await asyncio.sleep(0.01)
        await made.close()
        await reader.read()
    writer.close()
