"""Measures the cost of each field of a request in llama.cpp, at the largest size that the front door accepts and at related sizes.

`python -m benchmarks.request_costs`: one engine, no Envoy; the filter of the front door runs in this process. Run it again after each
update of llama.cpp, and with a real model (`--model FILE`): a bound in envoy/limits.yaml is right if the rows of its field stay below about
0.1 s for each token and 100 MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.mesh import wide_model
from tests.mesh.accepted import FrontDoor
from tests.mesh.hostile_bodies import COMPLETIONS, FAMILIES, Family

_ALIAS = "costs"
_PATIENCE = 20.0
"""Seconds after which a body counts as lost and its engine is replaced."""
_STARTING = 60.0


@dataclass(frozen=True)
class Cost:
    """Effect of one body on the engine."""

    status: str
    seconds: float
    """CPU time of the engine in seconds."""
    stall: float
    """Longest time in seconds of a concurrent request for one token."""
    mebibytes: int
    """Growth of the engine's memory."""


class Engine:
    """An engine on its own socket."""

    def __init__(self, model: Path) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="costs-")
        directory = Path(self._directory.name)
        self._socket = directory / "e.sock"
        spec = {"model": str(model), "listen": str(self._socket), "alias": _ALIAS, "model_context": 8192}
        (directory / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
        self._log = (directory / "log").open("wb")
        self._child = subprocess.Popen(
            [sys.executable, "-B", "-m", "engine.embedded", str(directory / "spec.json")],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
        )
        self.process = psutil.Process(self._child.pid)
        deadline = time.monotonic() + _STARTING
        while not self._healthy():
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"the engine did not start: {(directory / 'log').read_text(encoding='utf-8')[-2000:]}"
                )
            time.sleep(0.05)
        self.plain()

    def _healthy(self) -> bool:
        try:
            with self._client(2) as client:
                return client.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def _client(self, timeout: float) -> httpx.Client:
        return httpx.Client(
            base_url="http://engine", timeout=timeout, transport=httpx.HTTPTransport(uds=str(self._socket))
        )

    def post(self, path: str, body: bytes) -> str:
        """Return the status of the answer, or the failure."""
        try:
            with self._client(_PATIENCE) as client:
                return str(client.post(path, content=body, headers={"content-type": "application/json"}).status_code)
        except httpx.TimeoutException:
            return "no answer"
        except httpx.HTTPError:
            return "ended" if self._child.poll() is not None else "cut off"

    def plain(self) -> None:
        """Return the request of another client."""
        self.post(COMPLETIONS, b'{"prompt":"Hi","max_tokens":1}')

    def cost(self, path: str, body: bytes) -> Cost | None:
        """Send a body and concurrent small requests; None if the engine cannot be used afterwards."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="utf-8")
        used, memory = sum(self.process.cpu_times()[:2]), self.process.memory_info().rss
        statuses: list[str] = []
        sent = threading.Thread(target=lambda: statuses.append(self.post(path, body)), daemon=True)
        sent.start()
        stall = 0.0
        while True:
            began = time.monotonic()
            self.plain()
            stall = max(stall, time.monotonic() - began)
            if not sent.is_alive() or stall > _PATIENCE:
                break
            time.sleep(0.05)
        sent.join()
        if self._child.poll() is not None or stall > _PATIENCE:
            return None
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        largest = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
        seconds = sum(self.process.cpu_times()[:2]) - used
        return Cost(statuses[0], seconds, stall, max(0, largest - memory) >> 20)

    def stop(self) -> None:
        """Kill the engine."""
        self._child.kill()
        self._child.wait()
        self._log.close()
        self._directory.cleanup()


@contextmanager
def measured(model: Path | None) -> Iterator[Path]:
    """Return the model: the given one, or a temporary wide one."""
    if model:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="costs-") as directory:
        yield wide_model.write(Path(directory) / "wide.gguf")


def run(families: Sequence[Family], model: Path, *, bare: bool) -> None:
    """Print a row for each body. With `bare`, include the sizes that the front door refuses."""
    door = FrontDoor()
    engine: Engine | None = None
    print("| family | size | bytes | passes | answer | CPU s | stall s | MiB |\n|---|---|---|---|---|---|---|---|")
    try:
        for family in families:
            largest = door.largest(family)
            sizes = {largest} if largest else set()
            for size in sorted(sizes | set(family.sizes if bare else ())):
                if engine is None:
                    engine = Engine(model)
                body = family.body(size, _ALIAS)
                cost = engine.cost(family.path, body)
                row = f"| {family.name} | {size} | {len(body)} | {'yes' if size <= largest else 'no'} |"
                if cost is None:
                    print(f"{row} the engine is lost | | | |", flush=True)
                    engine.stop()
                    engine = None
                    break
                print(f"{row} {cost.status} | {cost.seconds:.2f} | {cost.stall:.2f} | {cost.mebibytes} |", flush=True)
    finally:
        if engine:
            engine.stop()


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.request_costs", description=__doc__)
    parser.add_argument("--model", type=Path, help="a GGUF file (default: a model with 131,072 tokens and no work)")
    parser.add_argument("--only", default="", help="families whose name matches this expression")
    parser.add_argument(
        "--bare", action="store_true", help="also what the front door refuses, as on an unprotected engine"
    )
    given = parser.parse_args()
    sys.setrecursionlimit(100_000)
    os.environ.pop("LLAMA_SERVER_BIN", None)
    with measured(given.model) as model:
        run([family for family in FAMILIES if re.search(given.only, family.name)], model, bare=given.bare)


if __name__ == "__main__":
    main()
