"""An engine's life on real llama.cpp: loading, ready, drained, failed with a reason, never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import sys
from pathlib import Path

import aiohttp
import pytest

from engine import sentence
from llamesh.file_holds import RemovalLock
from tests.mesh.engines import DEADLINE, alive, chat, engine, events, gone, loading, stop
from tests.ports import free_ports

SLOW = {"ctx_size": 8192, "parallel": 1}
"""One slot with a context that an endless stream does not fill while a test looks on."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "sentence.gguf")


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "prefill.gguf", size=sentence.PREFILL)


async def test_health_says_200_only_once_the_model_answers(tmp_path: Path, large_model: Path) -> None:
    statuses: list[int] = []
    async with engine(tmp_path / "e", large_model) as running, running.client() as client, asyncio.timeout(DEADLINE):
        while 200 not in statuses:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with client.get("/health") as answer:
                    statuses.append(answer.status)
        async with client.post("/v1/chat/completions", json=chat()) as answer:
            assert answer.status == 200, await answer.text()
    # Whether the moment between listening and loaded is met at all depends on the machine.
    assert statuses[:-1] == [503] * (len(statuses) - 1)


async def test_the_larger_model_says_the_same(tmp_path: Path, large_model: Path) -> None:
    async with engine(tmp_path / "e", large_model) as running:
        await running.until("ready")
        async with running.client() as client, client.post("/v1/chat/completions", json=chat()) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == sentence.SENTENCE


async def test_an_engine_holds_its_model_until_it_ends(tmp_path: Path) -> None:
    model = sentence.write(tmp_path / "sentence.gguf")
    async with engine(tmp_path / "e", model) as running:
        await running.until("ready")
        assert RemovalLock.of(model) is None
        running.process.terminate()
        await running.ended()
    claim = RemovalLock.of(model)
    assert claim is not None
    claim.end()


def truncated(model: Path) -> bytes:
    return model.read_bytes()[:400_000]


def of_unknown_architecture(model: Path) -> bytes:
    return model.read_bytes().replace(b"llama", b"lmama", 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda model: b"", "not a GGUF file"),
        (lambda model: b"<html>not found</html>", "not a GGUF file"),
        (lambda model: b"GGUF", "llama.cpp"),
        (lambda model: b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "llama.cpp"),
        (truncated, "llama.cpp"),
        (of_unknown_architecture, "llama.cpp"),
    ],
    ids=["empty", "html", "magic-only", "absurd-counts", "truncated", "architecture"],
)
async def test_a_bad_model_file_is_named_as_the_reason(tmp_path: Path, model: Path, make: object, words: str) -> None:
    bad = tmp_path / "bad.gguf"
    assert callable(make)
    bad.write_bytes(make(model))
    async with engine(tmp_path / "e", bad) as running:
        assert await running.ended() == 65
        assert running.state["phase"] == "failed"
        assert running.state["reason"] == "BAD_MODEL"
        assert words in running.state["message"]
        assert running.state["message"] in running.log
        assert not running.socket.exists()


async def test_an_absent_model_is_named_as_the_reason(tmp_path: Path) -> None:
    async with engine(tmp_path / "e", tmp_path / "absent.gguf") as running:
        assert await running.ended() == 66
        assert running.state["reason"] == "NO_MODEL"
        assert "absent.gguf" in running.state["message"]


async def test_a_context_beyond_memory_is_named_as_the_reason(tmp_path: Path) -> None:
    deep = sentence.write(tmp_path / "deep.gguf", size=sentence.Size(blocks=64))
    parameters = {"ctx_size": 1 << 20, "parallel": 1}  # 8 GiB of cache
    async with engine(tmp_path / "e", deep, parameters=parameters, memory_limit=4 << 30) as running:
        assert await running.ended() == 71
        assert running.state["reason"] == "OUT_OF_MEMORY"
        assert running.state["log"]


async def test_wrong_parameters_are_named_as_the_reason(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model, parameters={"no_such": 1}) as running:
        assert await running.ended() == 64
        assert running.state["reason"] == "BAD_SPEC"
        assert "no_such" in running.state["message"]


async def test_a_socket_in_use_is_not_taken(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model) as first:
        await first.until("ready")
        async with engine(tmp_path / "second", model, listen=str(first.socket)) as second:
            assert await second.ended() == 73
            assert second.state["reason"] == "ADDRESS_IN_USE"
        async with first.client() as client, client.get("/health") as answer:
            assert answer.status == 200


async def test_a_socket_left_by_a_killed_engine_is_taken_over(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model) as first:
        await first.until("ready")
        [child] = first.children()
        first.process.kill()
        await first.ended()
        assert await gone(child)
    assert first.socket.exists()
    first.state_file.unlink()
    async with engine(tmp_path / "e", model) as second:
        await second.until("ready")
        async with second.client() as client, client.get("/health") as answer:
            assert answer.status == 200


async def test_after_sigterm_a_running_stream_finishes_and_new_clients_are_refused(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model, parameters=SLOW) as running:
        await running.until("ready")
        async with running.client() as client:
            request = chat(stream=True, ignore_eos=True, max_tokens=4000)
            async with client.post("/v1/chat/completions", json=request) as answer:
                assert await answer.content.readline()
                running.process.terminate()
                await running.until("draining")
                async with asyncio.timeout(DEADLINE):
                    while running.socket.exists():
                        await asyncio.sleep(0.005)
                with pytest.raises(aiohttp.ClientConnectionError):
                    await client.get("/health")
                *chunks, last = events(await answer.text())
        assert last == "[DONE]"
        assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "length"
        assert await running.ended() == 0
        assert running.state["phase"] == "stopped"
        assert list(running.socket.parent.glob("*.sock")) == []


async def test_a_request_that_came_before_the_engine_knew_that_it_is_ready_is_answered(
    tmp_path: Path, model: Path
) -> None:
    async with loading(tmp_path, model, grace_seconds=DEADLINE) as (running, gate):
        await stop(running.process.pid)
        gate.touch()
        async with asyncio.timeout(DEADLINE), running.client() as client:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with client.get("/health") as answer:
                        if answer.status == 200:
                            break
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_unix_connection(running.socket)
        body = json.dumps(chat(max_tokens=2)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode())
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(DEADLINE):
            while running.state.get("phase") != "draining" and running.process.returncode is None:
                await asyncio.sleep(0.01)
            writer.write(body)
            assert b" 200 " in await reader.readline(), running.log
        writer.close()
        assert await running.ended() == 0


async def test_a_stream_that_outlasts_the_grace_is_cut_off(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model, parameters=SLOW, grace_seconds=0.2) as running:
        await running.until("ready")
        [child] = running.children()
        async with running.client() as client:
            request = chat(stream=True, ignore_eos=True, max_tokens=1_000_000)
            async with client.post("/v1/chat/completions", json=request) as answer:
                assert await answer.content.readline()
                # Its context would end before the grace does: hold llama.cpp still, as a long prompt would.
                os.kill(child, signal.SIGSTOP)
                running.process.terminate()
                assert await running.ended() == 0
        assert "cut off" in running.log
        assert not alive(child)


async def test_a_second_sigterm_ends_it_at_once(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model, parameters=SLOW, grace_seconds=600) as running:
        await running.until("ready")
        [child] = running.children()
        async with running.client() as client:
            request = chat(stream=True, ignore_eos=True, max_tokens=1_000_000)
            async with client.post("/v1/chat/completions", json=request) as answer:
                assert await answer.content.readline()
                os.kill(child, signal.SIGSTOP)
                running.process.terminate()
                await running.until("draining")
                running.process.terminate()
                assert await running.ended() == 0
        assert not alive(child)


async def test_sigterm_while_loading_ends_it(tmp_path: Path, model: Path) -> None:
    async with loading(tmp_path / "e", model) as (running, _):
        await running.until("starting")
        running.process.terminate()
        assert await running.ended() == 0
        assert running.state["phase"] == "stopped"


@pytest.mark.parametrize("phase", ["starting", "ready"])
async def test_the_end_of_the_lifeline_ends_it(tmp_path: Path, model: Path, phase: str) -> None:
    reading, writing = os.pipe()
    try:
        async with loading(tmp_path / "e", model, lifeline=reading, grace_seconds=600) as (running, gate):
            os.close(reading)
            if phase == "ready":
                gate.touch()
            await running.until(phase)
            children = running.children()
            os.close(writing)
            writing = -1
            assert await running.ended() == 0
            for child in children:
                assert await gone(child)
    finally:
        if writing >= 0:
            os.close(writing)


async def test_with_a_supervisor_sigterm_is_ignored_and_a_repeated_wish_to_end_forces_nothing(
    tmp_path: Path, model: Path
) -> None:
    reading, writing = os.pipe()
    try:
        async with engine(tmp_path / "e", model, lifeline=reading, parameters=SLOW, grace_seconds=600) as running:
            os.close(reading)
            await running.until("ready")
            [child] = running.children()
            async with running.client() as client:
                request = chat(stream=True, ignore_eos=True, max_tokens=4000)
                async with client.post("/v1/chat/completions", json=request) as answer:
                    assert await answer.content.readline()
                    os.kill(child, signal.SIGTERM)
                    running.process.terminate()
                    assert await answer.content.readline()
                    assert running.state["phase"] == "ready"
                    for _ in range(2):
                        running.process.send_signal(signal.SIGINT)
                        await running.until("draining")
                    *_, last = events(await answer.text())
            assert last == "[DONE]"
            assert await running.ended() == 0
    finally:
        os.close(writing)


@pytest.mark.parametrize("lifeline", ["", "x", "777"])
async def test_a_lifeline_that_is_none_is_refused(tmp_path: Path, model: Path, lifeline: str) -> None:
    async with engine(tmp_path / "e", model, environment={"LLAMESH_LIFELINE_FD": lifeline}) as running:
        if not lifeline:
            await running.until("ready")
            return
        assert await running.ended() == 64
        assert f"LLAMESH_LIFELINE_FD={lifeline}" in running.state["message"]


async def test_over_tcp_it_serves_and_drains_too(tmp_path: Path, model: Path) -> None:
    (port,) = free_ports(1)
    async with engine(tmp_path / "e", model, listen=f"127.0.0.1:{port}", parameters=SLOW) as running:
        await running.until("ready")
        request = chat(stream=True, ignore_eos=True, max_tokens=4000)
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
            client.post("/v1/chat/completions", json=request) as answer,
        ):
            assert await answer.content.readline()
            running.process.terminate()
            *_, last = events(await answer.text())
        assert last == "[DONE]"
        assert await running.ended() == 0


async def test_kill_9_of_the_engine_leaves_no_llama_cpp(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model) as running:
        await running.until("ready")
        [child] = running.children()
        running.process.kill()
        await running.ended()
        assert await gone(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process say that it may be killed first")
async def test_llama_cpp_is_killed_first_when_memory_runs_out(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model) as running:
        await running.until("ready")
        [child] = running.children()
        own = int(Path(f"/proc/{running.process.pid}/oom_score_adj").read_text())
        assert int(Path(f"/proc/{child}/oom_score_adj").read_text()) == 500 > own


async def test_the_death_of_llama_cpp_is_explained(tmp_path: Path, model: Path) -> None:
    async with engine(tmp_path / "e", model) as running:
        await running.until("ready")
        [child] = running.children()
        os.kill(child, signal.SIGSEGV)
        assert await running.ended() == 70
        assert running.state["reason"] == "CRASHED"
        assert "SIGSEGV" in running.state["message"]


async def test_whoever_reads_the_log_may_go_away(tmp_path: Path, model: Path) -> None:
    spec = tmp_path / "spec.json"
    state = tmp_path / "state.json"
    document = {"model": str(model), "listen": str(tmp_path / "e.sock"), "alias": "m", "state_file": str(state)}
    spec.write_text(json.dumps(document))
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "engine",
        str(spec),
        stderr=writing,
        env=dict(os.environ) | {"LLAMA_SERVER_BIN": "embedded"},
    )
    os.close(writing)
    os.close(reading)
    try:
        async with asyncio.timeout(DEADLINE):
            while not state.exists() or json.loads(state.read_bytes())["phase"] != "ready":
                assert process.returncode is None
                await asyncio.sleep(0.01)
    finally:
        process.terminate()
        assert await process.wait() == 0
