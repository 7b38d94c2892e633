"""A peer that takes its time to greet (far away, or on a busy machine) is reached all the same, by clients and by members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from llamesh.client.aio import AsyncClient
from llamesh.client.sync import Client
from llamesh.kit.channels import call_options, channel
from llamesh.kit.config import Settings
from llamesh.v1 import gateway_pb2, gateway_pb2_grpc
from tests.contract.fakes import FakeDownloads, FakeGateway, fake_mesh
from tests.contract.patience import PATIENCE

DISTANCE = 1.5
"""Seconds until the peer's first word arrives."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with fake_mesh(FakeGateway(), FakeDownloads()) as address:
        yield address


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass on what comes, the first of it late."""
    try:
        while data := await reader.read(65_536):
            await asyncio.sleep(delay)
            delay = 0
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def distant(url: str, socket: Path | None = None) -> AsyncIterator[str]:
    """The same mesh, far away: the address of a relay in front of it."""
    host, port = urlsplit(url).hostname, urlsplit(url).port

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near_reader, near_writer = await asyncio.open_connection(host, port)
        await asyncio.gather(relay(reader, near_writer, 0), relay(near_reader, writer, DISTANCE))

    server = (
        await asyncio.start_unix_server(serve, socket) if socket else await asyncio.start_server(serve, "127.0.0.1", 0)
    )
    async with server:
        yield f"unix:{socket}" if socket else f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_the_client_reaches_it_at_the_first_try(url: str) -> None:
    async with distant(url) as far, AsyncClient(far) as mesh:
        assert (await mesh.login("ada", "right", timeout=PATIENCE)).access_token


async def test_the_client_without_await_reaches_it_at_the_first_try(url: str) -> None:
    def login(far: str) -> str:
        with Client(far) as mesh:
            return mesh.login("ada", "right", timeout=PATIENCE).access_token

    async with distant(url) as far:
        assert await asyncio.to_thread(login, far)


async def test_a_member_reaches_it_too(url: str, one_settings: Settings) -> None:
    one_settings.run_dir.mkdir(parents=True, exist_ok=True)
    async with distant(url, one_settings.socket("gateway")), channel(one_settings, "gateway", "contract") as far:
        stub = gateway_pb2_grpc.GatewayServiceStub(far)
        request = gateway_pb2.CreateTokenRequest(username="ada", password="right")
        assert (await stub.CreateToken(request, **call_options())).access_token
