"""A real llama.cpp behind a Unix socket says the sentence, in every form in which it can be asked."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine import sentence
from tests.mesh.engines import Engine, chat, engine, events, stalls

END_OF_TEXT = 2
"""The token `</s>` of the model."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "sentence.gguf")


@pytest.fixture
async def ready(tmp_path: Path, model: Path) -> AsyncIterator[Engine]:
    async with engine(tmp_path / "e", model) as running:
        await running.until("ready")
        yield running


@pytest.mark.parametrize("prompt", ["Hello!", "The mesh is up,", "Envoy.", "", "</s>", "日本語", "x" * 3000])
@pytest.mark.parametrize("temperature", [0, 0.8, 2])
async def test_any_prompt_at_any_temperature_gets_the_sentence(ready: Engine, prompt: str, temperature: float) -> None:
    async with ready.client() as client:
        async with client.post("/v1/chat/completions", json=chat(prompt, temperature=temperature)) as answer:
            body = await answer.json()
        assert body["choices"][0]["message"]["content"] == sentence.SENTENCE
        assert body["choices"][0]["finish_reason"] == "stop"
        async with client.post("/v1/completions", json={"prompt": prompt, "temperature": temperature}) as answer:
            body = await answer.json()
        assert body["choices"][0]["text"] == sentence.SENTENCE
        assert body["usage"]["completion_tokens"] == sentence.COMPLETION_TOKENS
        assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + sentence.COMPLETION_TOKENS
        assert body["model"] == "sentence"


async def test_a_stream_ends_with_usage_and_done(ready: Engine) -> None:
    request = chat(stream=True, stream_options={"include_usage": True})
    async with ready.client() as client, client.post("/v1/chat/completions", json=request) as answer:
        *chunks, last = events(await answer.text())
    assert last == "[DONE]"
    parsed = [json.loads(chunk) for chunk in chunks]
    text = "".join(c["delta"].get("content") or "" for chunk in parsed for c in chunk["choices"])
    assert text == sentence.SENTENCE
    assert parsed[-1]["usage"]["completion_tokens"] == sentence.COMPLETION_TOKENS


@pytest.mark.parametrize("ends", [{"max_tokens": 0}, {"logit_bias": [[END_OF_TEXT, 1000]]}], ids=["limit", "end"])
async def test_an_answer_that_ends_at_once_has_one_token(ready: Engine, ends: dict[str, Any]) -> None:
    """The time to the first token is that of this token."""
    request = {"prompt": "Hi", "stream": True, **ends}
    async with ready.client() as client, client.post("/v1/completions", json=request) as answer:
        *before, last, done = events(await answer.text())
    assert (len(before), done) == (1, "[DONE]")
    assert json.loads(last)["usage"]["completion_tokens"] == 1


async def test_max_tokens_cuts_the_sentence(ready: Engine) -> None:
    async with (
        ready.client() as client,
        client.post("/v1/completions", json={"prompt": "a", "max_tokens": 3}) as answer,
    ):
        [choice] = (await answer.json())["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("The mesh is", "length")


async def test_the_socket_is_for_its_owner_only(ready: Engine) -> None:
    assert stat.S_IMODE(ready.socket.stat().st_mode) & 0o077 == 0


async def test_only_the_intended_endpoints_of_llama_cpp_are_enabled(ready: Engine) -> None:
    async with ready.client() as client:

        async def status(method: str, path: str, **body: Any) -> int:
            async with client.request(method, path, **body) as answer:
                return answer.status

        assert await status("GET", "/metrics") == 200
        assert await status("GET", "/slots") == 200
        assert await status("POST", "/props", json={}) == 501
        assert await status("POST", "/slots/0?action=save", json={"filename": "x"}) == 501
        assert await status("GET", "/") == 404
        async with client.get("/props") as answer:
            props = await answer.json()
    assert props["total_slots"] == 4
    assert props["default_generation_settings"]["n_ctx"] == 4096


async def test_typed_parameters_arrive(tmp_path: Path, model: Path) -> None:
    parameters = {
        "ctx_size": 512,
        "parallel": 2,
        "predict": 2,
        "temp": 0.25,
        "seed": 7,
        "cache_type_k": "CACHE_TYPE_F32",
    }
    async with engine(tmp_path / "e", model, parameters=parameters) as running:
        await running.until("ready")
        async with running.client() as client:
            async with client.get("/props") as answer:
                props = await answer.json()
            async with client.post("/v1/completions", json={"prompt": "a"}) as answer:
                body = await answer.json()
    assert (props["total_slots"], props["default_generation_settings"]["n_ctx"]) == (2, 256)
    assert props["default_generation_settings"]["params"]["temperature"] == 0.25
    assert props["default_generation_settings"]["params"]["seed"] == 7
    assert body["choices"][0]["text"] == "The mesh"


async def test_a_key_is_asked_for_except_for_health(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model, api_key="mesh-private") as running:
        await running.until("ready")
        async with running.client() as client:
            statuses = []
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer mesh-private"}):
                async with client.post("/v1/completions", json={"prompt": "a"}, headers=headers) as answer:
                    statuses.append(answer.status)
            async with client.get("/health") as answer:
                assert answer.status == 200
        assert statuses == [401, 401, 200]
        # The drain asks /metrics, with the key.
        running.process.terminate()
        assert await running.ended() == 0


async def test_twenty_at_once_on_four_slots_have_no_plateau(tmp_path: Path, model: Path) -> None:
    """llama.cpp gives each connection a thread and keeps it 5 s: with too few threads some requests wait that long."""
    async with engine(tmp_path / "e", model, http_threads=64) as running:
        await running.until("ready")

        async def ask() -> float:
            started = time.monotonic()
            # Connections kept alive, unlike Envoy's: the case that the threads are for.
            async with client.post("/v1/chat/completions", json=chat()) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"] == sentence.SENTENCE
            return time.monotonic() - started

        import aiohttp

        connector = aiohttp.UnixConnector(str(running.socket), limit=0)
        async with aiohttp.ClientSession("http://engine", connector=connector) as client:
            bursts = [await asyncio.gather(*(ask() for _ in range(20))) for _ in range(5)]
    # With too few threads, each burst stalls; a single one may look so because the machine paused.
    assert stalls(bursts) <= 1, bursts


async def test_a_client_that_leaves_frees_its_slot(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model, parameters={"parallel": 1, "ctx_size": 8192}) as running:
        await running.until("ready")
        async with running.client() as client:
            endless = chat(stream=True, ignore_eos=True, max_tokens=100_000)
            async with client.post("/v1/chat/completions", json=endless) as answer:
                assert await answer.content.readline()
                answer.close()
            # The only slot: an answer means that it is free again, long before the other would have ended.
            async with client.post("/v1/chat/completions", json=chat()) as answer:
                assert (await answer.json())["choices"][0]["message"]["content"] == sentence.SENTENCE
