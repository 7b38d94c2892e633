"""An inference request through the mesh against a plain Envoy to the same stub: CPU time, latency, and what a stream waits longer."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks import load, processes
from benchmarks.front import MODEL, Front, fronts
from benchmarks.report import Row, Table

MESSAGES = [{"role": "user", "content": "Hello! What is the capital of France?"}]


def _request(port: int, token: str, *, stream: bool) -> load.Request:
    body = json.dumps(
        {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 1, "stream": stream}
    ).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    return load.Request(port, "POST", "/v1/chat/completions", headers, body)


def _targets(front: Front) -> dict[str, tuple[int, str, tuple[int, ...]]]:
    """Port, token, and the processes whose CPU time counts."""
    return {
        "plain Envoy": (front.plain_port, front.unmetered, (front.plain_pid,)),
        "mesh, unmetered": (front.mesh_port, front.unmetered, (front.mesh_pid, front.contract_pid)),
        "mesh, Admission asked": (front.mesh_port, front.asked, (front.mesh_pid, front.contract_pid)),
    }


async def measure(folder: Path, *, rounds: int, requests: int, chance: random.Random) -> list[Table]:
    """Rounds in random order, so that a noisy moment meets every target."""
    plain = Table(
        "Inference request, plain answer", "plain Envoy", ("Envoy us", "Python us", "CPU us", "p50 ms", "p99 ms")
    )
    stream = Table("Inference request, stream of 64 frames", "plain Envoy", ("first frame ms", "between frames ms"))
    async with fronts(folder) as front:
        targets = _targets(front)
        for port, token, _ in targets.values():
            await load.run(_request(port, token, stream=False), count=200, concurrency=4)
        for _ in range(rounds):
            for name in chance.sample(list(targets), len(targets)):
                port, token, pids = targets[name]
                before = [processes.cpu_seconds([pid]) for pid in pids]
                outcome = await load.run(_request(port, token, stream=False), count=requests, concurrency=8)
                used = [
                    (processes.cpu_seconds([pid]) - start) / requests * 1e6
                    for pid, start in zip(pids, before, strict=True)
                ]
                values = (
                    used[0],
                    sum(used[1:]),
                    sum(used),
                    outcome.percentile(0.5) * 1e3,
                    outcome.percentile(0.99) * 1e3,
                )
                plain.add(Row(name, values, requests, outcome.failures))
            for name in chance.sample(list(targets), len(targets)):
                port, token, _ = targets[name]
                count = max(20, requests // 40)
                outcome = await load.run(_request(port, token, stream=True), count=count, concurrency=2)
                first = sorted(outcome.first_byte)[len(outcome.first_byte) // 2] * 1e3
                gap = sorted(outcome.gaps)[len(outcome.gaps) // 2] * 1e3
                stream.add(Row(name, (first, gap), count, outcome.failures))
    return [plain, stream]
