"""Liveness is measured through llama.cpp's inference loop, on real engines: stuck, stopped, and merely busy."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from controller.runtimes import EnginePhase, Liveness, engine_process, probe
from controller.runtimes.liveness import SILENT_PROBES, Assessment, ProbeHistory, assess
from engine import sentence
from llamesh.kit.config import Settings
from llamesh.processes import ProcessId
from tests.mesh.engines import gone
from tests.mesh.runtimes import STUCK_FOR_EVER, ended, idle, llama, load, only, opened, post, ready, stopped, until

STALL = 15.0
"""Seconds. More than the second silent probe takes, and more than one pause of this process counts: suspicion is seen before the end."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentence.write(tmp_path_factory.mktemp("model") / "sentence.gguf")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "h",
        jwt_secret=SecretStr("0123456789abcdef" * 2),
        drain_seconds=2,
        engine_stall_seconds=STALL,
    )


async def test_a_stuck_inference_loop_is_found_although_health_is_well(settings: Settings, model: Path) -> None:
    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        child = llama(engine)
        poison = asyncio.create_task(post(engine.address, "/v1/chat/completions", STUCK_FOR_EVER))
        await until(lambda: only(runtime).liveness is Liveness.SUSPECT)
        async with asyncio.timeout(STALL / 2):
            while not await probe.is_ready(engine.address):
                pass  # HTTP threads answer it all the same.
        assert "does not answer" in only(runtime).liveness_message
        assert await runtime.load(engine.instance) is None
        found = await ended(runtime)
        assert (found.reason, found.requested) == ("InferenceStuck", False)
        # Longer than the setting if the engine had pauses before, as on a busy machine.
        assert int(found.message.split("no progress for ")[1].split(" s")[0]) >= STALL
        assert await poison == 0
        assert await gone(child)


async def test_a_stopped_engine_is_suspect_at_the_second_probe_and_well_as_soon_as_it_goes_on(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspected: list[ProbeHistory] = []

    def assessed(probes: ProbeHistory, stall_seconds: float) -> Assessment:
        found = assess(probes, stall_seconds)
        if found.liveness is Liveness.SUSPECT:
            suspected.append(probes)
        return found

    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        monkeypatch.setattr(engine_process, "assess", assessed)
        with stopped(llama(engine)):
            await until(lambda: only(runtime).liveness is Liveness.SUSPECT)
        await until(lambda: only(runtime).liveness is Liveness.ALIVE)
        # An engine that had pauses before, as on a busy machine, is suspected later.
        paused = suspected[0].longest or suspected[0].longest_idle
        assert suspected[0].silent == SILENT_PROBES or paused
        assert only(runtime).phase is EnginePhase.READY
        assert only(runtime).process == engine.process


async def test_an_engine_that_is_stopped_for_good_is_ended_and_said_to_have_used_no_time(
    settings: Settings, model: Path
) -> None:
    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        child = llama(engine)
        os.kill(child, signal.SIGSTOP)
        found = await ended(runtime)
        assert found.reason == "InferenceStuck"
        assert "no processor time" in found.message
        assert await gone(child)


async def test_probes_of_a_dying_engine_do_not_change_why_it_was_killed(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Assessment] = []

    def verdict(*_: object) -> Assessment:
        judged.append(Assessment(Liveness.SUSPECT if judged else Liveness.STUCK, "no progress"))
        return judged[-1]

    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        with monkeypatch.context() as dying_slowly:
            dying_slowly.setattr(engine_process, "assess", verdict)
            dying_slowly.setattr(ProcessId, "signal", lambda *_: None)
            await until(lambda: len(judged) > 1)
        os.kill(int(engine.process), signal.SIGKILL)
        assert (await ended(runtime)).reason == "InferenceStuck"


async def test_a_prefill_longer_than_the_patience_is_let_finish(settings: Settings, tmp_path: Path) -> None:
    large = sentence.write(tmp_path / "prefill.gguf", size=sentence.PREFILL)
    async with opened(settings) as runtime:
        engine = await ready(runtime, large, ctx_size=8192, parallel=1, threads=1, batch_size=64)
        began, sent = time.monotonic(), 0
        while time.monotonic() - began < 1.5 * STALL:
            # However fast the machine is: prompts of another text each, until the engine was busy for longer than its patience.
            sent += 1
            body = {"prompt": f"{sent} " + "word " * 700, "max_tokens": 1}
            assert await post(engine.address, "/v1/completions", body) == 200
            assert only(runtime).phase is EnginePhase.READY
        assert only(runtime).process == engine.process


async def test_a_failure_of_the_probe_itself_neither_ends_the_watching_nor_the_engine(
    settings: Settings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0

    def broken(*_: object) -> None:
        nonlocal failed
        failed += 1
        raise RuntimeError("no idea")

    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        monkeypatch.setattr(engine_process, "llama_stats", broken)
        await until(lambda: failed >= 2)
        monkeypatch.undo()
        assert only(runtime).phase is EnginePhase.READY
        with stopped(llama(engine)):
            await until(lambda: only(runtime).liveness is Liveness.SUSPECT)
        await until(lambda: only(runtime).liveness is Liveness.ALIVE)
        monkeypatch.setattr(engine_process, "llama_stats", broken)
        os.kill(int(engine.process), signal.SIGKILL)
        assert (await ended(runtime)).reason == "EngineKilled"


async def test_an_engine_that_a_real_time_signal_ended_is_explained(settings: Settings, model: Path) -> None:
    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        os.kill(int(engine.process), signal.SIGRTMIN + 1)
        found = await ended(runtime)
        assert (found.reason, found.message) == ("EngineKilled", "the engine was ended by SIGRTMIN+1")


async def test_a_client_that_is_connected_keeps_an_engine_busy(settings: Settings, model: Path) -> None:
    """A request that llama.cpp still reads, parses or tokenizes is in none of its counters."""
    async with opened(settings) as runtime:
        engine = await ready(runtime, model)
        for _ in range(20):
            await idle(runtime, engine)
        _, writer = await asyncio.open_unix_connection(engine.address)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: engine\r\nContent-Length: 1000\r\n\r\n")
        await writer.drain()
        assert (await load(runtime, engine)).busy
        writer.close()
