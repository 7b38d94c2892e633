"""The inference listener measures answers: a real Envoy in front of an engine that sends its first token when the test says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import aiohttp
import pytest
from prometheus_client.samples import Sample

from llamesh.kit.exposition import parsed
from services.gateway.envoy_metrics import PATH, QUERY, exposed
from tests.mesh.front_door import PATIENCE, FrontDoor, token

U = "cccccccc-3333-4333-8333-333333333333"
FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds"
HELD = 0.5
"""Seconds for which an engine holds its first token back. More only makes the test clearer."""
BIN = 0.9
"""Envoy's histograms store values with two digits: their sum may be this part of the true one."""


async def samples(door: FrontDoor) -> Iterator[Sample]:
    text = await door.admin(f"{PATH}?{urlencode(QUERY)}")
    return (each for family in exposed(parsed(text.encode())) for each in family.samples)


async def value(door: FrontDoor, name: str) -> float:
    return sum(each.value for each in await samples(door) if each.name == name)


@pytest.mark.parametrize("headers", [{}, {"authorization": f"Bearer {token()}"}], ids=["anonymous", "with a token"])
async def test_the_time_to_the_first_token_is_that_of_the_token_and_not_of_the_head(
    door: FrontDoor, headers: dict[str, str]
) -> None:
    engine = await door.engine()
    engine.first_token = asyncio.Event()
    door.serve(U, engine, names=("smol",))
    assert await door.control.settled(PATIENCE)
    body = {"model": "smol", "messages": [], "stream": True}
    began = time.monotonic()
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{door.port}") as session,
        session.post("/v1/chat/completions", json=body, headers=headers | {"host": "localhost"}) as answer,
    ):
        has_head = time.monotonic()
        assert answer.status == 200
        assert answer.content.total_bytes == 0
        await asyncio.sleep(HELD)
        held = time.monotonic() - has_head
        engine.first_token.set()
        text = await answer.content.readuntil(b"\n\n")
        has_token = time.monotonic() - began
        # What follows the first token passes as it came, whether or not its tokens are counted.
        assert (text + await answer.read()).decode().count("data: ") == 3

    async def stored() -> bool:
        return await value(door, f"{FIRST_TOKEN}_count") > 0

    await door.until(stored, PATIENCE)
    assert held * BIN <= await value(door, f"{FIRST_TOKEN}_sum") <= has_token / BIN


async def test_an_answer_that_is_not_streamed_has_no_time_to_a_first_token(door: FrontDoor) -> None:
    door.serve(U, await door.engine(), names=("smol",))
    assert await door.control.settled(PATIENCE)
    assert (await door.chat(headers={"authorization": f"Bearer {token()}"})).status == 200

    async def stored() -> bool:
        return await value(door, "gen_ai_server_request_duration_seconds_count") > 0

    await door.until(stored, PATIENCE)
    assert await value(door, f"{FIRST_TOKEN}_count") == 0
