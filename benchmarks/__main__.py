"""`python -m benchmarks` (or `make bench`) runs all benchmarks, interleaved, and prints a report in Markdown."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import shutil
import tempfile
from pathlib import Path

from benchmarks import engines, idle, inference, management, rights, transfers
from tests.mesh.running import running_mesh


async def main() -> None:
    """Run the selected benchmarks."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each target")
    parser.add_argument("--requests", type=int, default=2000, help="requests of each target in a round")
    parser.add_argument("--idle-seconds", type=float, default=20, help="how long the idle mesh is watched")
    parser.add_argument("--seed", type=int, default=1, help="order of the targets")
    parser.add_argument(
        "--models", type=Path, help="where SmolLM2 is or shall stay; it is fetched for each run otherwise"
    )
    parser.add_argument(
        "--only",
        choices=["inference", "rights", "engines", "management", "idle", "transfers"],
        help="leave the rest out; transfers is run only if named",
    )
    parser.add_argument("--model-bytes", type=int, default=1 << 30, help="size of the model of the transfers")
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    count = {"rounds": asked.rounds, "requests": asked.requests, "chance": chance}
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load average before {load}\n"
    )
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        if asked.only in (None, "inference"):
            for table in await inference.measure(folder, **count):
                print(table.markdown(), flush=True)
        if asked.only == "transfers":
            for table in transfers.measure(folder, size=asked.model_bytes, rounds=asked.rounds, chance=chance):
                print(table.markdown(), flush=True)
        if asked.only in (None, "rights"):
            print(f"### Revoked keys\n\n{await rights.measure()}\n", flush=True)
        if asked.only in (None, "engines"):
            for table in await engines.measure(
                folder, cache=asked.models or folder, rounds=asked.rounds, chance=chance
            ):
                print(table.markdown(), flush=True)
        if asked.only in (None, "management", "idle"):
            with running_mesh(LLAMESH_LOG_LEVEL="warning") as mesh:
                mesh.add_model("sentence", "sentence.gguf")
                server = mesh.serve("sentence", model_name="sentence.gguf")
                mesh.call("POST", f"/servers/{server['server_uuid']}:sleep", json={})
                mesh.until_state(server["server_uuid"], "SERVER_STATE_SLEEPING")
                if asked.only != "idle":
                    for table in await management.measure(mesh, folder, **count):
                        print(table.markdown(), flush=True)
                if asked.only != "management":
                    print(idle.measure(mesh, seconds=asked.idle_seconds), flush=True)
                    print(idle.second_start(mesh, "sentence.gguf"), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(main())
