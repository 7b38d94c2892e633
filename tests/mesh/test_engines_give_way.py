"""A real engine leaves cores to others that need them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import sentence
from tests.mesh.engines import DEADLINE, LLAMA_SERVER_BIN, engine

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel's counters are Linux's"),
    pytest.mark.skipif(LLAMA_SERVER_BIN != "embedded", reason="only the embedded library can change while it runs"),
]
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


@contextlib.contextmanager
def taken_cores() -> Iterator[None]:
    """As many processes as there are cores, which compute and never wait."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in CORES]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.skipif(len(CORES) < 2, reason="one core cannot be shared")
async def test_a_busy_engine_keeps_to_half_of_the_cores_while_others_compute(tmp_path: Path) -> None:
    model = sentence.write(tmp_path / "prefill.gguf", size=sentence.PREFILL)
    async with engine(tmp_path, model) as running, running.client() as client:
        await running.until("ready")
        (llama,) = running.children()
        async with asyncio.timeout(DEADLINE):
            while os.sched_getaffinity(llama) != CORES:
                await asyncio.sleep(0.05)

        async def ask() -> None:
            body = {"prompt": "the quick brown fox " * 100, "n_predict": 64, "ignore_eos": True, "cache_prompt": False}
            while True:
                async with client.post("/completion", json=body) as answer:
                    assert answer.status == 200
                    await answer.read()

        asking = asyncio.create_task(ask())
        try:
            with taken_cores():
                async with asyncio.timeout(DEADLINE):
                    while (kept := os.sched_getaffinity(llama)) == CORES:
                        await asyncio.sleep(0.05)
            assert 0 < len(kept) < len(CORES)
            assert not asking.done()
        finally:
            asking.cancel()
