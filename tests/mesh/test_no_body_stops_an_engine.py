"""No body that passes the front door stops the engine for others: real Envoy, real llama.cpp, a vocabulary as large as a real model's.

Time is counted in CPU seconds of the engine wherever a busy machine could be the reason of a wait.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from llamesh.kit import limits
from tests.mesh import hostile_bodies, wide_model
from tests.mesh.accepted import FrontDoor
from tests.mesh.hostile_bodies import CHAT, EMBEDDINGS, FAMILIES, MODEL, PATHS, Family
from tests.mesh.running import RunningMesh
from tests.processes import mesh_processes, snapshots
from tests.unit import limit_examples

WAIT = 5.0
"""Seconds in which a plain request of another client is answered, whatever one client sends."""
GROWTH = 100 << 20
"""Bytes by which one request may make the engine grow."""
SECONDS, SECONDS_PER_BYTE = 3.0, 10e-6
"""CPU time that an accepted body with a short answer may cost the engine: so much, and so much for each of its bytes."""
SECONDS_PER_TOKEN = 300e-6
"""CPU time that a token of its prompt may cost: that is ordinary work, which grows with the length of the prompt."""
BYTES, BYTES_PER_BYTE = GROWTH, 100
"""Memory that an accepted body may cost the engine."""
BODIES = int(os.environ.get("TEST_FUZZ_BODIES", "150"))
"""Random bodies that are sent; 5,000 are a night's work."""
SEED = int(os.environ.get("TEST_FUZZ_SEED", "1"))
DOOR = FrontDoor()
PATIENCE = 20.0
"""Seconds after which a hostile client gives up; closing the connection ends its request."""
GIVEN_UP = -1


@dataclass
class Server:
    """A server with one engine."""

    mesh: RunningMesh
    uuid: str
    engine: psutil.Process
    asked: tuple[str, dict[str, Any]]
    """Path and body of what an ordinary client asks."""

    def post(self, path: str, body: bytes, timeout: float = 60.0) -> httpx.Response:
        """One request on a connection of its own, as another client's would be."""
        with httpx.Client(timeout=timeout) as client:
            return client.post(
                self.mesh.url("inference", f"/{self.uuid}{path}"),
                content=body,
                headers={"content-type": "application/json"},
            )

    def plain(self) -> httpx.Response:
        """What an ordinary client asks."""
        path, body = self.asked
        return self.post(path, json.dumps(body).encode())

    def seconds(self) -> float:
        """CPU time of the engine so far."""
        used = self.engine.cpu_times()
        return float(used.user + used.system)

    def memory(self) -> int:
        """Bytes that the engine has."""
        return int(self.engine.memory_info().rss)

    def largest(self) -> int:
        """Bytes that it had at most since `forget`."""
        status = Path(f"/proc/{self.engine.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024

    def forget(self) -> None:
        """Let `largest` begin anew."""
        Path(f"/proc/{self.engine.pid}/clear_refs").write_text("5")


@pytest.fixture(scope="module")
def wide(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> RunningMesh:
    """A mesh that has the wide model."""
    mesh.add_model("wide", "wide.gguf", wide_model.write(tmp_path_factory.mktemp("wide") / "wide.gguf"))
    return mesh


@contextmanager
def served(mesh: RunningMesh, options: str, path: str, body: dict[str, Any]) -> Iterator[Server]:
    """A server of the wide model, stopped afterwards."""
    # Large, as the bytes of a prompt are also bounded by the context.
    parameters = f"--ctx-size 262144 --parallel 4 {options}".strip()
    uuid = mesh.serve("wide", model_name="wide.gguf", runtime_params=parameters)["server_uuid"]
    (engine,) = snapshots(lambda words: "engine.embedded" in words and uuid[:8] in words[-1], mesh_processes(mesh.home))
    running = Server(mesh, uuid, engine.process, (path, body))
    running.plain()
    try:
        yield running
    finally:
        mesh.call("DELETE", f"/stop/{uuid}")


@pytest.fixture(scope="module")
def server(wide: RunningMesh) -> Iterator[Server]:
    """A server of texts."""
    body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8}
    with served(wide, "", CHAT, body) as running:
        yield running


@pytest.fixture(scope="module")
def embedder(wide: RunningMesh) -> Iterator[Server]:
    """A server of embeddings."""
    with served(wide, "--embeddings --pooling mean", EMBEDDINGS, {"input": "Hello!"}) as running:
        yield running


class Sent(threading.Thread):
    """A request that a hostile client sends, and does not wait for."""

    def __init__(self, server: Server, path: str, body: bytes) -> None:
        super().__init__(daemon=True)
        self._send = lambda: server.post(path, body, PATIENCE)
        self.status: int | None = None
        """None while it runs, GIVEN_UP if it took longer than the client's patience, 0 if the connection broke."""
        self.answer = ""

    def run(self) -> None:
        try:
            answer = self._send()
            self.status, self.answer = answer.status_code, answer.text[:300]
        except httpx.ReadTimeout:
            self.status = GIVEN_UP
        except httpx.HTTPError as error:
            self.status, self.answer = 0, repr(error)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_plain_request_is_answered_despite_hostile_requests(server: Server, family: Family) -> None:
    hinders_nobody(server, family)


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES if family.path == EMBEDDINGS], ids=lambda family: family.name
)
def test_a_plain_text_is_embedded_despite_hostile_requests(embedder: Server, family: Family) -> None:
    hinders_nobody(embedder, family)


def hinders_nobody(server: Server, family: Family) -> None:
    """Send a family at its own sizes, and at the largest that the front door lets through, with a plain client beside."""
    for size in sorted({*family.sizes, DOOR.largest(family)}):
        server.forget()
        before = server.memory()
        sent = Sent(server, family.path, family.body(size, MODEL))
        sent.start()
        while True:
            began, used = time.monotonic(), server.seconds()
            assert server.plain().status_code == 200
            waited = min(time.monotonic() - began, server.seconds() - used)
            assert waited < WAIT, f"{family.name} {size}: a plain request waited {waited:.1f} s"
            if not sent.is_alive():
                break
        assert server.engine.is_running(), f"{family.name} {size} ended the engine"
        assert sent.status in {GIVEN_UP, 200, 400, 404, 413, 500, 501}, (
            f"{family.name} {size}: {sent.status} {sent.answer}"
        )
        grown = server.largest() - before
        assert grown < GROWTH, f"{family.name} {size}: {grown >> 20} MiB"


def test_random_accepted_bodies_cost_no_more_than_their_budget(server: Server) -> None:
    """Rows of the table and hostile families, at their bounds and below, alone and together."""
    chance = random.Random(SEED)
    passed, over = 0, []
    for number in range(BODIES):
        path, body = random_body(chance, MODEL)
        server.forget()
        memory, used = server.memory(), server.seconds()
        answer = server.post(path, body)
        cost, grown = server.seconds() - used, server.largest() - memory
        passed += not refused(answer)
        budget = SECONDS + len(body) * SECONDS_PER_BYTE + prompt_tokens(answer) * SECONDS_PER_TOKEN
        if cost > budget or grown > BYTES + len(body) * BYTES_PER_BYTE:
            told = body[:1000].decode(errors="replace")
            over.append(f"{number}: {cost:.1f} s, {grown >> 20} MiB, {path}, {len(body)} bytes: {told}")
    assert not over, f"seed {SEED}: " + "\n".join(over)
    assert passed > BODIES // 4, "too few of the bodies reached the engine to say anything"


def refused(answer: httpx.Response) -> bool:
    """Whether the front door answered: it names the field or the body, which llama.cpp does not."""
    return answer.status_code >= 400 and answer.json()["error"]["message"].startswith(("The field ", "The body "))


def prompt_tokens(answer: httpx.Response) -> int:
    """How long the prompt was, as the engine counts; 0 for a request that it did not answer."""
    usage = answer.json().get("usage", {}) if answer.status_code == 200 else {}
    return int(usage.get("prompt_tokens") or usage.get("input_tokens") or 0)


def random_body(chance: random.Random, model: str) -> tuple[str, bytes]:
    """One to four fields, each at the bound of a row of the table or of a family at a random size below its own."""
    table = limits.table()
    examples = limit_examples.examples()
    fields: dict[str, Any] = {}
    paths: list[str] = []
    for _ in range(chance.choice((1, 1, 2, 4))):
        if chance.random() < 0.5:
            example = chance.choice(examples)
            amount = min(table[example.limit].default, example.largest or 1 << 62)
            made = example.make(amount)
            paths.append(f"/v1/{example.path}")
        else:
            family = chance.choice(FAMILIES)
            made = family.body(int(DOOR.largest(family) * chance.random() ** 0.5), model)
            paths.append(family.path)
        try:
            fields |= json.loads(made)
        except (ValueError, RecursionError):  # meant to be no JSON, or deeper than Python reads
            return paths[-1], made
    fields |= {"model": model, "max_tokens": hostile_bodies.TOKENS}
    # Mostly a path on which one of them is read, with what that path needs.
    path = chance.choice(paths if chance.random() < 0.9 else PATHS)
    needed: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "prompt": "Hello", "input": "Hello"}
    return path, json.dumps({**needed, **fields}).encode()
