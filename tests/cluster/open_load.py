"""An open load of chats, sent in the network of a cluster's node: what became of each request is counted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from engine import sentence
from tests.cluster.local_cluster import Cluster

# Requests at a constant rate, whatever becomes of earlier ones, and no retries: what was not answered in full is printed.
PROGRAM = """
import asyncio, collections, os, sys, time, httpx
url, seconds, rate, text, key, stop = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:7]
body = {"model": "sentence", "messages": [{"role": "user", "content": "Hi"}]}
async def main():
    seen = collections.Counter()
    headers, limits = {"authorization": f"Bearer {key}"}, httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits, headers=headers) as client:
        async def ask():
            try:
                answer = await client.post(url, json=body)
                whole = answer.status_code == 200 and text in answer.text
                seen["ok" if whole else f"{answer.status_code}: {answer.text[:300]}"] += 1
            except httpx.HTTPError as error:
                seen[repr(error)] += 1
        began, asked = time.monotonic(), []
        for number in range(int(seconds * rate)):
            if stop and os.path.exists(stop):
                break
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            asked.append(asyncio.create_task(ask()))
        await asyncio.gather(*asked)
    print(seen)
asyncio.run(main())
"""


def ask(
    cluster: Cluster,
    host: str,
    key: str,
    seconds: float,
    rate: float,
    log: Path | None = None,
    stop: Path | None = None,
) -> Any:
    """Send requests for the model `sentence` at a constant rate; what became of them, or, with `log`, the process that writes it there.

    It sends for so many seconds, or until there is the file `stop`.
    """
    url = f"http://{host}:8080/v1/chat/completions"
    words = [sys.executable, "-c", PROGRAM, url, str(seconds), str(rate), sentence.SENTENCE, key, str(stop or "")]
    return cluster.start(*words, log=log) if log else cluster.command("run", *words).stdout.strip()
