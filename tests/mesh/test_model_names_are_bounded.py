"""Names that clients make up leave nothing behind: neither Envoy nor the controller grows with them."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter

from engine.sentence import SENTENCE
from tests.mesh.conftest import Served

CONNECTIONS = 16
MEBIBYTE = 2**20
GROWTH = 4 * MEBIBYTE
"""A kept name would cost Envoy some 26 KB as a cluster and 100 bytes as a bare string: 80,000 of them 8 MB at the very least."""


def request(number: int, randomness: random.Random) -> bytes:
    """A chat with a model, or with a server, that nobody else asks for."""
    if number % 2:
        path, model = "/v1/chat/completions", f"unknown/model-{number}:{randomness.getrandbits(64):x}"
    else:
        path, model = f"/{uuid.UUID(int=randomness.getrandbits(128))}/v1/chat/completions", "sentence.gguf"
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer(reader: asyncio.StreamReader) -> str:
    """The status of the next answer, its body read."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
    await reader.readexactly(int(length))
    return head[9:12]


async def ask(port: int, first: int, count: int, seed: int) -> Counter[str]:
    """Statuses of so many unknown names over one connection that is kept."""
    randomness = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found: Counter[str] = Counter()
    try:
        for number in range(first, first + count):
            writer.write(request(number, randomness))
            found[await answer(reader)] += 1
    finally:
        writer.close()
        await writer.wait_closed()
    return found


async def ask_for_unknown_names(port: int, count: int, seed: int) -> Counter[str]:
    each = count // CONNECTIONS
    asked = (ask(port, index * each, each, seed + index) for index in range(CONNECTIONS))
    async with asyncio.timeout(200):
        return sum(await asyncio.gather(*asked), Counter())


async def test_a_hundred_thousand_unknown_names_cost_no_memory(served: Served) -> None:
    mesh = served.mesh
    port = mesh.ports["inference"]
    watched = {name: mesh.processes()[name] for name in ("envoy", "controller")}

    assert await ask_for_unknown_names(port, 20_000, seed=1) == {"404": 20_000}
    before = {name: process.memory_info().rss for name, process in watched.items()}
    assert await ask_for_unknown_names(port, 80_000, seed=1_000) == {"404": 80_000}
    grown = {name: process.memory_info().rss - before[name] for name, process in watched.items()}

    assert all(bytes_ < GROWTH for bytes_ in grown.values()), grown
    body = {"model": served.model, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}
    chat = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body)
    assert chat.status_code == 200, chat.text
    assert chat.json()["choices"][0]["message"]["content"].strip() == SENTENCE
