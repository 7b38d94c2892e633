"""A source that is away for a moment ends no transfer that it has answered; one that has never answered fails at once."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from llamesh.v1 import download_pb2 as pb
from tests.contract.download.conftest import Service
from tests.contract.download.in_parts import DIGEST, NEVER
from tests.contract.ranged_source import Answer, RangedServer

KEY = cast("Any", SimpleNamespace(host="source.example", port=443, ssl=True, is_ssl=True))
Refuse = Callable[[int], list[int]]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """`refuse(n)`: the next n connections are refused. The result gets an item for each."""

    def start(times: int) -> list[int]:
        get: Callable[..., Awaitable[aiohttp.ClientResponse]] = aiohttp.ClientSession.get
        refused: list[int] = []

        async def refusing(*arguments: Any, **options: Any) -> aiohttp.ClientResponse:
            if len(refused) < times:
                refused.append(1)
                raise aiohttp.ClientConnectorError(KEY, ConnectionRefusedError(errno.ECONNREFUSED, "refused"))
            return await get(*arguments, **options)

        monkeypatch.setattr(aiohttp.ClientSession, "get", refusing)
        return refused

    return start


async def test_a_source_that_answered_before_is_tried_again(
    half: Service, source: RangedServer, refuse: Refuse
) -> None:
    await half.pause("m1")
    refused = refuse(4)
    source.go_on_until(NEVER)
    await half.resume("m1")
    found = await half.state("m1")
    assert (found.state, found.sha256) == (pb.DOWNLOAD_STATE_SUCCEEDED, DIGEST)
    assert len(refused) == 4


async def test_a_source_that_stays_away_is_given_up_after_the_tries_of_any_other(
    half: Service, source: RangedServer, refuse: Refuse
) -> None:
    await half.pause("m1")
    before = (await half.get("m1")).bytes_done
    refuse(NEVER)
    source.go_on_until(NEVER)
    await half.resume("m1")
    found = await half.state("m1")
    assert (found.state, found.error.reason) == (pb.DOWNLOAD_STATE_FAILED, "SOURCE_UNAVAILABLE")
    assert "given up after 6 tries" in found.error.message
    assert before


async def test_the_first_request_of_a_download_fails_at_once(
    service: Service, source: RangedServer, refuse: Refuse
) -> None:
    refused = refuse(NEVER)
    found = await service.fetched("m1", "https://127.0.0.1:9/a.gguf")
    assert found.state == pb.DOWNLOAD_STATE_FAILED
    assert len(refused) <= 1


async def test_a_failed_download_keeps_its_last_progress(half: Service, source: RangedServer) -> None:
    def away(_: web.Request, answer: Answer) -> None:
        answer.status, answer.body, answer.length, answer.ranged = 404, b"", 0, False

    before = (await half.get("m1")).bytes_done
    assert before
    source.fault = away
    source.go_on_until(NEVER)
    found = await half.state("m1")
    assert found.state == pb.DOWNLOAD_STATE_FAILED
    assert found.bytes_done >= before
