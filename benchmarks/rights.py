"""Measures the cost of a further revocation and of a request with 0, 1,000 and 100,000 revoked keys.

The mesh's own control plane (in this process) and a real Envoy. A revocation is measured from `set_admission_ids` until Envoy has taken
it; its bytes are those of the route configuration that is sent. A request is one `GET /v1/models` with a valid key on a persistent
connection; Envoy looks it up in the digest and gets the answer from a stub.

    .venv/bin/python -m benchmarks --only rights
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time

from benchmarks import processes
from controller.xds.snapshot import RDS
from tests.mesh.front_door import FrontDoor, front_door, token

COUNTS = (0, 1_000, 100_000)
PUSHES = 20
REQUESTS = 3_000


COLUMNS = ("revoked keys", "bytes of a push", "ms of a push", "CPU us of a request in Envoy", "% asked about")


async def measure() -> str:
    """Return a Markdown table with one row for each number of revoked keys."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for count in COUNTS:
        async with front_door() as door:
            engine = await door.engine("a")
            door.serve("a" * 8, engine, names=("smol",))
            await door.control.settled(20)
            rows.append([f"{count:,}", *await _with(door, count)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


async def _with(door: FrontDoor, count: int) -> list[str]:
    chance = random.Random(1)
    revoked = {f"key_{chance.getrandbits(64):016x}" for _ in range(count)}
    door.control.set_admission_ids("keys", revoked)
    await door.control.settled(60)
    pushes = []
    for number in range(PUSHES):
        revoked.add(f"key_more{number:012x}")
        started = time.perf_counter()
        door.control.set_admission_ids("keys", revoked, [f"key_more{number:012x}"])
        await door.control.settled(60)
        pushes.append(time.perf_counter() - started)
    size = door.control.intent.snapshot.of(RDS)["inference"].message.ByteSize()
    # Requests use those of the first hundred keys that the digest does not mistake for revoked ones.
    keys = [token(jti=f"key_{chance.getrandbits(64):016x}") for _ in range(200)]
    connection = await door.connect()
    asked, good = 0, []
    for key in keys:
        headers = {"authorization": f"Bearer {key}"}
        try:
            async with asyncio.timeout(0.5):
                if (await door.send("GET", "/v1/models", None, headers)).status == 200:
                    good.append(headers)
                    continue
        except TimeoutError:
            pass
        asked += 1
    for headers in good[:50] * 4:
        await connection.send("GET", "/v1/models", None, headers)
    before = processes.cpu_seconds([door.pid])
    for number in range(REQUESTS):
        await connection.send("GET", "/v1/models", None, good[number % min(50, len(good))])
    used = (processes.cpu_seconds([door.pid]) - before) / REQUESTS
    return [
        f"{size:,}",
        f"{statistics.median(pushes) * 1e3:.1f}",
        f"{used * 1e6:.0f}",
        f"{100 * asked / len(keys):.1f}",
    ]
