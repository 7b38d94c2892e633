"""Measures a management call through the mesh (Envoy, JWT, transcoding, gRPC, SQL), compared with a FastAPI endpoint for the same work."""

from __future__ import annotations

import random
import sqlite3
import sys
from pathlib import Path

from benchmarks import load, processes
from benchmarks.report import Row, Table
from tests.mesh.running import RunningMesh
from tests.ports import free_ports

FASTAPI = "FastAPI + uvicorn"


async def measure(mesh: RunningMesh, folder: Path, *, rounds: int, requests: int, chance: random.Random) -> list[Table]:
    """Measure `GET /users/{username}`, which is the same work on both sides, and a call with another service behind it."""
    port = free_ports(1)[0]
    database = folder / "users.db"
    source = sqlite3.connect(f"file:{mesh.home / 'data' / 'gateway.db'}?mode=ro", uri=True)
    _copy_users(source, database)
    environment = {
        "BENCH_DATABASE": f"sqlite+aiosqlite:///{database}",
        "BENCH_SECRET": (mesh.home / "secrets" / "jwt_secret").read_text(encoding="utf-8").strip(),
    }
    command = [sys.executable, "-m", "uvicorn", "benchmarks.fastapi_app:app", "--port", str(port), "--no-access-log"]
    app = processes.start([*command, "--log-level", "warning"], folder / "fastapi.log", environment)
    parts = mesh.processes()
    table = Table("Management call", (FASTAPI,), ("Envoy us", "Python us", "CPU us", "p50 ms", "p99 ms"))
    headers = {"authorization": f"Bearer {mesh.token}"}
    gateway = mesh.ports["gateway"]
    user, model = "/users/admin", "/models/sentence"
    targets = {
        FASTAPI: (load.Request(port, "GET", user, headers), None, [app.pid]),
        "mesh, REST": (load.Request(gateway, "GET", user, headers), parts["envoy"].pid, [parts["gateway"].pid]),
        "mesh, REST, with a second member": (
            load.Request(gateway, "GET", model, headers),
            parts["envoy"].pid,
            [parts["gateway"].pid, parts["download"].pid],
        ),
    }
    try:
        processes.wait_for(lambda: _up(port), 20, "uvicorn")
        for request, _, _ in targets.values():
            await load.run(request, count=200, concurrency=4)
        for _ in range(rounds):
            for name in chance.sample(list(targets), len(targets)):
                request, envoy, pythons = targets[name]
                before = (processes.cpu_seconds([envoy] if envoy else []), processes.cpu_seconds(pythons))
                outcome = await load.run(request, count=requests, concurrency=8)
                after = (processes.cpu_seconds([envoy] if envoy else []), processes.cpu_seconds(pythons))
                used = [(end - start) / requests * 1e6 for start, end in zip(before, after, strict=True)]
                values = (*used, sum(used), outcome.percentile(0.5) * 1e3, outcome.percentile(0.99) * 1e3)
                table.add(Row(name, values, requests, outcome.failures))
    finally:
        source.close()
        processes.end(app)
    return [table]


def _copy_users(source: sqlite3.Connection, database: Path) -> None:
    """Create the same row in a table with the same columns."""
    target = sqlite3.connect(database)
    target.execute(
        "CREATE TABLE users (username TEXT PRIMARY KEY, role TEXT, contract_id TEXT, create_time, update_time)"
    )
    rows = source.execute("SELECT username, role, contract_id, create_time, update_time FROM users").fetchall()
    target.executemany(
        "INSERT INTO users VALUES (?, ?, ?, ?, ?)", [(row[0], str(row[1]), row[2] or "", *row[3:]) for row in rows]
    )
    target.execute("PRAGMA journal_mode=WAL")
    target.commit()
    target.close()


def _up(port: int) -> bool:
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.HTTPError:
        return False
