"""Measures an inference request through the mesh against plain Envoys with the same stub: CPU time by size of prompt, latency, streams."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks import load, processes
from benchmarks.front import MODEL, ONE, POOLED, TCP, Front, fronts
from benchmarks.report import Row, Table

QUESTION = "Hello! What is the capital of France? "
# Tables, with the repetitions of the question in the prompt and the divisor of the number of requests.
SIZES = {
    "Inference request, plain answer, 200 B": (1, 1),
    "The same, prompt of 4 KB": (105, 2),
    "The same, prompt of 100 KB": (2630, 10),
}
COLUMNS = ("Envoy us", "Python us", "CPU us", "p50 ms", "p99 ms")


def _request(port: int, token: str, *, repeat: int = 1, stream: bool = False) -> load.Request:
    messages = [{"role": "user", "content": QUESTION * repeat}]
    asked = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 1, "stream": stream}
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    return load.Request(port, "POST", "/v1/chat/completions", headers, json.dumps(asked).encode())


def _targets(front: Front) -> dict[str, tuple[int, str, tuple[int, ...]]]:
    """Port, token, and the processes whose CPU time counts."""
    mesh = (front.mesh.pid, front.contract_pid)
    plain = {name: (proxy.port, front.unmetered, (proxy.pid,)) for name, proxy in front.plain.items()}
    return plain | {
        "mesh, anonymous": (front.mesh.port, "not-needed", mesh),
        "mesh, unmetered": (front.mesh.port, front.unmetered, mesh),
        "mesh, Admission asked": (front.mesh.port, front.asked, mesh),
    }


async def measure(folder: Path, *, rounds: int, requests: int, chance: random.Random) -> list[Table]:
    """Run the targets of each round in random order, so that noise affects every target."""
    references = (ONE, POOLED, TCP)
    tables = {title: Table(title, references, COLUMNS) for title in SIZES}
    stream = Table("Inference request, stream of 64 frames", references, ("first frame ms", "between frames ms"))
    async with fronts(folder) as front:
        targets = _targets(front)
        for port, token, _ in targets.values():
            await load.run(_request(port, token), count=200, concurrency=4)
        for _ in range(rounds):
            for title, (repeat, fewer) in SIZES.items():
                for name in chance.sample(list(targets), len(targets)):
                    port, token, pids = targets[name]
                    request = _request(port, token, repeat=repeat)
                    tables[title].add(await _round(name, request, pids, requests // fewer))
            for name in chance.sample(list(targets), len(targets)):
                port, token, _ = targets[name]
                count = max(20, requests // 40)
                outcome = await load.run(_request(port, token, stream=True), count=count, concurrency=2)
                first = sorted(outcome.first_byte)[len(outcome.first_byte) // 2] * 1e3
                gap = sorted(outcome.gaps)[len(outcome.gaps) // 2] * 1e3
                stream.add(Row(name, (first, gap), count, outcome.failures))
    return [*tables.values(), stream]


async def _round(name: str, request: load.Request, pids: tuple[int, ...], count: int) -> Row:
    """The first process is Envoy, the others Python."""
    before = [processes.cpu_seconds([pid]) for pid in pids]
    outcome = await load.run(request, count=count, concurrency=8)
    used = [(processes.cpu_seconds([pid]) - start) / count * 1e6 for pid, start in zip(pids, before, strict=True)]
    p50, p99 = outcome.percentile(0.5) * 1e3, outcome.percentile(0.99) * 1e3
    return Row(name, (used[0], sum(used[1:]), sum(used), p50, p99), count, outcome.failures)
