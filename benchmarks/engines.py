"""Measures tokens per second of engines as the mesh starts them, compared with llama.cpp with one thread and with all cores.

Situations: an idle machine, one core and all cores used by other processes, and two engines that answer at the same time. All engines stay
up. Each round runs every target in random order, after a bounded wait for an idle machine. The prompt is never cached; both speeds are
llama.cpp's own timings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks import processes
from benchmarks.report import Row, Table
from engine.demo import NAME, demo_model
from engine.thread_placement import ENVIRONMENT, MAX_CALM_SECONDS
from llamesh.cores import cores
from tests.ports import free_ports

ONE, ALL, MESH = "llama.cpp, one thread", "llama.cpp, all cores", "mesh"
PROMPT_TOKENS = 256
ANSWER_TOKENS = 24
COLUMNS = ("prompt tokens/s", "answer tokens/s", "cores that others used")
QUIET_CORES = 0.15
QUIET_SECONDS = 5.0


@dataclass(frozen=True)
class Engine:
    """An engine under test."""

    port: int
    process: subprocess.Popen[bytes]

    def pids(self) -> list[int]:
        """Processes of the engine."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [self.process.pid, *(child.pid for child in children)]


async def measure(folder: Path, *, cache: Path, rounds: int, chance: random.Random) -> list[Table]:
    """Return a table for each situation. `cache` is the directory of the model, which is downloaded if missing."""
    all_cores = len(cores().groups)
    situations = {"nothing else to do": (1, 0), "one core taken": (1, 1), "all cores taken": (1, all_cores)}
    situations["two engines at the same time"] = (2, 0)
    tables = {name: Table(f"Engine, {name}", (ONE, ALL), COLUMNS) for name in situations}
    with _engines(folder, cache, all_cores) as engines:
        for _ in range(rounds):
            for name, (together, taken) in situations.items():
                with _taken(taken) as others:
                    for target in chance.sample(list(engines), len(engines)):
                        tables[name].add(await _round(target, engines, together, others, chance))
    return list(tables.values())


async def _round(
    target: str, engines: dict[str, list[Engine]], together: int, others: Sequence[int], chance: random.Random
) -> Row:
    own = [*others, os.getpid(), *(pid for each in engines.values() for engine in each for pid in engine.pids())]
    # After the measurement before, a packed engine may take so long to spread again.
    await asyncio.sleep(MAX_CALM_SECONDS + 0.5)
    await _until_quiet(own)
    before, started = _used_by_others(own), time.monotonic()
    asked = [asyncio.to_thread(_ask, engine, chance.getrandbits(32)) for engine in engines[target][:together]]
    timings = await asyncio.gather(*asked)
    used = (_used_by_others(own) - before) / (time.monotonic() - started)
    prompt, answer = (sum(each[name] for each in timings) for name in ("prompt_per_second", "predicted_per_second"))
    return Row(target, (prompt, answer, max(0.0, used)), together, 0)


def _ask(engine: Engine, seed: int) -> dict[str, Any]:
    """One prompt of random tokens, and an answer of a given length."""
    tokens = random.Random(seed).choices(range(1000, 20000), k=PROMPT_TOKENS)
    body = {"prompt": tokens, "n_predict": ANSWER_TOKENS, "ignore_eos": True, "cache_prompt": False}
    request = urllib.request.Request(
        f"http://127.0.0.1:{engine.port}/completion", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        timings: dict[str, Any] = json.load(answer)["timings"]
    return timings


async def _until_quiet(own: Sequence[int]) -> None:
    """Wait until other processes are idle, at most for a bounded time."""
    until = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < until:
        before, started = _used_by_others(own), time.monotonic()
        await asyncio.sleep(0.2)
        if (_used_by_others(own) - before) / (time.monotonic() - started) < QUIET_CORES:
            return


def _used_by_others(own: Sequence[int]) -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system) - processes.cpu_seconds(own)


@contextlib.contextmanager
def _taken(count: int) -> Iterator[list[int]]:
    """Start so many processes that compute without a pause."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield [process.pid for process in busy]
    finally:
        for process in busy:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _engines(folder: Path, cache: Path, all_cores: int) -> Iterator[dict[str, list[Engine]]]:
    """Two engines of each kind. The plain ones are the library with nothing set but the number of threads."""
    model = demo_model(cache)
    if model.name != NAME:
        raise RuntimeError(f"the benchmark needs a real model: {model.source}")
    plain = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    kinds = {
        ONE: ("engine.embedded", {"threads": 1, "threadsBatch": 1}),
        ALL: ("engine.embedded", {"threads": all_cores, "threadsBatch": all_cores}),
        MESH: ("engine", {}),
    }
    ports = iter(free_ports(2 * len(kinds)))
    engines: dict[str, list[Engine]] = {name: [] for name in kinds}
    try:
        for name, (module, threads) in kinds.items():
            for port in (next(ports), next(ports)):
                spec = folder / f"{port}.json"
                given: dict[str, Any] = {"model": model.path, "listen": f"127.0.0.1:{port}", "alias": "m"}
                spec.write_text(
                    json.dumps(given | {"parameters": {"parallel": 1, "ctxSize": 2048, **threads}}), encoding="utf-8"
                )
                with (folder / f"{port}.log").open("ab") as log:
                    command = [sys.executable, "-B", "-m", module, str(spec)]
                    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=plain)
                engines[name].append(Engine(port, process))
        for each in engines.values():
            for engine in each:
                processes.wait_for(lambda port=engine.port: _answers(port), 120, f"{folder}/{engine.port}.log")  # type: ignore[misc]
                _ask(engine, 0)
        yield engines
    finally:
        processes.end(*(engine.process for each in engines.values() for engine in each))


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
