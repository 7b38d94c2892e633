"""What is said of a source that cannot be reached: whether a retry helps always, only if it has answered before, or never."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import aiohttp
import pytest
from aiohttp import web

from services.download.sources import AddressRules, SourceError
from services.download.sources.http_client import HttpClient, expect
from tests.unit.loopback import serving

KEY = cast("Any", SimpleNamespace(host="store.example", port=443, ssl=True, is_ssl=True))


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "transient", "unreachable"),
    [
        (aiohttp.ClientConnectorError(KEY, failure(errno.ECONNREFUSED)), False, True),
        (aiohttp.ClientConnectorError(KEY, failure(errno.EHOSTUNREACH)), False, True),
        (aiohttp.ClientConnectorError(KEY, failure(errno.ENETUNREACH)), False, True),
        (aiohttp.ClientOSError(errno.ENETDOWN, "down"), False, True),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), True, True),
        (aiohttp.ClientOSError(errno.EPIPE, "pipe"), True, True),
        (aiohttp.ServerDisconnectedError(), True, False),
        (aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError("no")), False, False),
        (aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "wrong version")), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_each_failure_to_connect(error: Exception, transient: bool, unreachable: bool) -> None:
    client = HttpClient(AddressRules(frozenset({"127.0.0.1"})), http_hosts=["127.0.0.1:9"])
    with (
        mock.patch.object(aiohttp.ClientSession, "get", mock.AsyncMock(side_effect=error)),
        pytest.raises(SourceError) as caught,
    ):
        async with client.get(client.parsed("http://127.0.0.1:9/a.gguf")):
            pass
    assert (caught.value.transient, caught.value.unreachable) == (transient, unreachable)


@pytest.mark.parametrize("number", [socket.EAI_AGAIN, socket.EAI_NONAME, socket.EAI_FAIL])
async def test_a_name_that_cannot_be_found(number: int) -> None:
    rules = AddressRules(resolve=mock.AsyncMock(side_effect=socket.gaierror(number, "no")))
    with pytest.raises(SourceError) as caught:
        await rules.addresses("huggingface.co", 443)
    assert (caught.value.transient, caught.value.unreachable) == (False, True)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_a_status_that_may_pass(status: int) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=status)

    async with serving({"/a": handle}) as host:
        client = HttpClient(AddressRules(frozenset({"127.0.0.1"})), http_hosts=[host])
        async with client.get(client.parsed(f"http://{host}/a")) as response:
            with pytest.raises(SourceError) as caught:
                await expect(response, {200})
    assert (caught.value.transient, caught.value.status) == (True, status)
