"""Permits of a killed Envoy are freed though another one is connected: each Envoy is known by the address of its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

from llamesh.kit.envoy_api import message_class
from llamesh.names import ADMISSION_LOG
from services.contract.access_log import AccessLog

Message = message_class("envoy.service.accesslog.v3.StreamAccessLogsMessage")


class Stream:
    """An access log stream of the Envoy at an address."""

    def __init__(self, log: AccessLog, peer: str) -> None:
        self._end = asyncio.Event()
        context: Any = SimpleNamespace(peer=lambda: peer)
        self._task = asyncio.create_task(log.stream_access_logs(self._messages(), context))
        self.open = asyncio.Event()

    async def _messages(self) -> AsyncIterator[Any]:
        yield Message(identifier={"log_name": ADMISSION_LOG})
        self.open.set()
        await self._end.wait()

    async def close(self) -> None:
        self._end.set()
        await self._task


async def test_the_permits_of_an_envoy_are_freed_when_its_last_stream_ends() -> None:
    freed: list[str] = []
    admission: Any = SimpleNamespace(release_all=freed.append)
    log = AccessLog(admission, asyncio.Event())
    peers = ("ipv4:10.0.0.1:4000", "ipv4:10.0.0.1:4001", "ipv4:10.0.0.2:4000")
    first, second, other = streams = [Stream(log, peer) for peer in peers]
    for stream in streams:
        await stream.open.wait()
    await first.close()
    assert freed == []
    await second.close()
    assert freed == ["ipv4:10.0.0.1"]
    await other.close()
    assert freed == ["ipv4:10.0.0.1", "ipv4:10.0.0.2"]
