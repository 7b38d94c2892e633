"""One prompt through every API, streamed and not, with one answer and two, read to the end and left: the same numbers in ListUsage."""

from __future__ import annotations

import itertools
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import sentence
from tests.mesh.running import RunningMesh, until

QUESTION = "Hello there mesh"
RENDERED = f"user: {QUESTION}\nassistant: "
"""What the model's template makes of the question."""
MESSAGES = [{"role": "user", "content": QUESTION}]
SLOW = sentence.Size(blocks=4, width=512, feed_forward=2048)
ANSWER = [f"word{number}" for number in range(100)]
ANSWER_TOKENS = len(ANSWER) + 1
LEAVES_AFTER = 9
"""Tokens."""
LONG_TOKENS = 1800
"""Of an answer that takes many seconds."""

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": RENDERED},
    "/v1/responses": {"input": [{"role": "user", "content": QUESTION}]},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 200},
}
REPEATED = {"stream": True, "timings_per_token": True, "return_progress": True, "verbose": True}
"""What a client can ask for that repeats what was used, in the middle of an answer or twice at its end."""
ANSWERS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ('"delta":{"content":"',),
    "/v1/completions": ('"text":"',),
    "/v1/responses": ('"type":"response.output_text.delta"',),
    "/v1/messages": ('"type":"text_delta"',),
}
"""What an event of a stream that brings a token has in it."""


@dataclass(frozen=True)
class Case:
    """One request, and what it is to count."""

    name: str
    path: str
    body: dict[str, Any] = field(hash=False)
    answers: int = 1
    leaves: bool = False


def _cases() -> Iterator[Case]:
    for path, body in BODIES.items():
        api = path.removeprefix("/v1/")
        for stream, n in itertools.product((False, True), (1, 2)):
            if n > 1 and path == "/v1/messages":
                continue  # it knows no `n`
            asked = body | ({"stream": True} if stream else {}) | ({"n": n} if n > 1 else {})
            yield Case(f"{api} n={n}{' stream' if stream else ''}", path, asked, n)
        yield Case(f"{api} left", path, body | {"stream": True}, leaves=True)
    chat = BODIES["/v1/chat/completions"]
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    yield Case("chat with usage", "/v1/chat/completions", chat | with_usage)
    yield Case("chat with usage n=2", "/v1/chat/completions", chat | with_usage | {"n": 2}, 2)
    yield Case("chat with timings", "/v1/chat/completions", chat | {"stream": True, "timings_per_token": True})
    for path, body in BODIES.items():
        api, n = path.removeprefix("/v1/"), 1 if path == "/v1/messages" else 2
        yield Case(f"{api} repeated", path, body | REPEATED | ({"n": n} if n > 1 else {}), n)
    yield Case("chat repeated with usage", "/v1/chat/completions", chat | REPEATED | with_usage)
    two = {"prompt": [RENDERED, RENDERED]}
    yield Case("two prompts", "/v1/completions?x=1", two, 2)
    yield Case("two prompts stream", "/v1/completions", two | {"stream": True}, 2)


CASES = {case.name: case for case in _cases()}


Row = dict[str, Any]
"""A row of ListUsage."""


def counts(row: Row) -> tuple[int, int]:
    return int(row.get("prompt_tokens", 0)), int(row.get("completion_tokens", 0))


class Accounts:
    """Keys with a contract of their own, so that each request is accounted apart from the others."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._mesh = mesh

    def open(self, name: str) -> tuple[str, str]:
        """A contract and a key of it."""
        made = self._mesh.call("POST", "/contracts", json={"display_name": name})
        contract_id: str = made.json()["contract_id"]
        key = self._mesh.call("POST", "/keys", json={"display_name": name, "contract_id": contract_id})
        return contract_id, key.json()["token"]

    def rows(self) -> dict[str, Row]:
        """Usage by contract."""
        listed = self._mesh.call("GET", "/usage?page_size=1000", "contract").json()["usage"]
        return {row["contract_id"]: row for row in listed}


def ask(mesh: RunningMesh, case: Case, token: str, model: str) -> None:
    """Send one request and read its answer, to the end or as far as the case says."""
    headers = {"authorization": f"Bearer {token}"}
    url, body = mesh.url("inference", case.path), case.body | {"model": model}
    came = 0
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            came += any(mark in line for mark in ANSWERS[case.path.partition("?")[0]])
            if case.leaves and came >= LEAVES_AFTER:
                break


@pytest.fixture(scope="module")
def accounts(mesh: RunningMesh) -> Accounts:
    return Accounts(mesh)


@pytest.fixture(scope="module")
def slow(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a served model that takes some milliseconds for a token."""
    path = tmp_path_factory.mktemp("slow") / "slow.gguf"
    with serving(mesh, sentence.write(path, size=SLOW, sentence=" ".join(ANSWER))) as name:
        yield name


@pytest.fixture(scope="module")
def quick(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a served model that answers the same without delay."""
    path = tmp_path_factory.mktemp("quick") / "quick.gguf"
    with serving(mesh, sentence.write(path, sentence=" ".join(ANSWER))) as name:
        yield name


@contextmanager
def serving(mesh: RunningMesh, path: Path) -> Iterator[str]:
    """The name under which a file is served in a `with` block."""
    mesh.add_model(path.stem, path=path)
    server = mesh.serve(path.stem, model_name=path.stem, runtime_params="--ctx-size 8192 --parallel 4")
    yield path.stem
    mesh.call("DELETE", f"/servers/{server['server_uuid']}")
    mesh.call("DELETE", f"/models/{path.stem}")


def ended_before(row: Row) -> bool:
    """Whether an answer ended before its client left. Fails if the row counts part of an answer as if it were known."""
    if int(row.get("unknown_requests", 0)):
        return False
    assert counts(row)[1] == ANSWER_TOKENS, row
    return True


@pytest.fixture(scope="module")
def rows(mesh: RunningMesh, quick: str, slow: str, accounts: Accounts) -> dict[str, Row]:
    """All cases, asked one after the other and read from ListUsage together."""
    # The tokens of a prompt whose answer was left are estimated from whole answers of the same model.
    _, token = accounts.open("whole answers of the slow model")
    for path, body in BODIES.items():
        ask(mesh, Case("whole", path, body), token, slow)
    asked: dict[str, str] = {}
    wanted = list(CASES)
    for _ in range(10):
        for name in wanted:
            contract_id, token = accounts.open(name)
            ask(mesh, CASES[name], token, slow if CASES[name].leaves else quick)
            asked[name] = contract_id
        until(lambda: accounts.rows().keys() >= set(asked.values()), 60, "every request in ListUsage")
        found = accounts.rows()
        # On a busy machine an answer may have ended before its client could leave: then the whole answer is counted, and not less.
        wanted = [name for name in wanted if CASES[name].leaves and ended_before(found[asked[name]])]
        if not wanted:
            return {name: found[contract_id] for name, contract_id in asked.items()}
    pytest.fail(f"never left in time: {wanted}")


@pytest.fixture(scope="module")
def prompt_tokens(mesh: RunningMesh, slow: str) -> int:
    """The length of the prompt, as llama.cpp counts it."""
    body = {"model": slow, "messages": MESSAGES}
    counted = mesh.http.post(mesh.url("inference", "/v1/chat/completions/input_tokens"), json=body)
    return int(counted.json()["input_tokens"])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.leaves])
def test_the_same_work_is_the_same_number(rows: dict[str, Row], prompt_tokens: int, name: str) -> None:
    row, case = rows[name], CASES[name]
    prompts = 2 if name.startswith("two prompts") else 1
    assert counts(row) == (prompts * prompt_tokens, case.answers * ANSWER_TOKENS)
    assert (int(row["requests"]), int(row.get("unknown_requests", 0))) == (1, 0)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.leaves])
def test_an_abandoned_stream_counts_the_tokens_received(rows: dict[str, Row], prompt_tokens: int, name: str) -> None:
    row = rows[name]
    prompt, completion = counts(row)
    # The engine may have sent more before it heard of it.
    assert LEAVES_AFTER <= completion < ANSWER_TOKENS
    # What the prompt had is told before the answer only by Anthropic's API; else it is an estimate from requests that told.
    assert prompt == prompt_tokens if "messages" in name else 0.5 * prompt_tokens < prompt < 2 * prompt_tokens
    assert (int(row["requests"]), int(row["unknown_requests"])) == (1, 1)


def processing(mesh: RunningMesh, model: str) -> bool:
    """Whether the engine of a model says that it works at a request."""
    sample = rf'^llamacpp:requests_processing{{[^}}]*model="{model}"[^}}]*}} [1-9]'
    return re.search(sample, mesh.call("GET", "/metrics").text, re.MULTILINE) is not None


def test_an_answer_that_is_left_before_it_begins_counts_its_prompt(
    mesh: RunningMesh, slow: str, rows: dict[str, Row], accounts: Accounts, prompt_tokens: int
) -> None:
    contract_id, token = accounts.open("left early")
    body = json.dumps({"model": slow, "messages": MESSAGES, "ignore_eos": True, "max_tokens": LONG_TOKENS}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", mesh.ports["inference"]), timeout=60) as client:
        client.sendall(head.encode() + body)
        until(lambda: processing(mesh, slow), 60, "the engine to be at work")
    row = until(lambda: accounts.rows().get(contract_id), 60, "the request in ListUsage")
    assert (int(row["requests"]), int(row["unknown_requests"])) == (1, 1)
    assert int(row.get("completion_tokens", 0)) == 0
    assert 0.5 * prompt_tokens < int(row["prompt_tokens"]) < 2 * prompt_tokens


def test_a_call_that_uses_no_tokens_is_not_counted_as_a_request(
    mesh: RunningMesh, slow: str, accounts: Accounts
) -> None:
    contract_id, token = accounts.open("free")
    headers = {"authorization": f"Bearer {token}"}
    body = {"model": slow, "messages": MESSAGES}
    for path in ("/v1/models", f"/v1/models/{slow}"):
        assert mesh.http.get(mesh.url("inference", path), headers=headers).status_code == 200
    for path in ("/v1/chat/completions/input_tokens", "/v1/messages/count_tokens"):
        assert mesh.http.post(mesh.url("inference", path), json=body, headers=headers).status_code == 200
    assert mesh.http.post(mesh.url("inference", "/v1/nothing"), json=body, headers=headers).status_code == 404
    refused = mesh.http.post(
        mesh.url("inference", "/v1/embeddings"), json={"model": slow, "input": "a"}, headers=headers
    )
    assert refused.status_code == 400
    last = {"model": slow, "prompt": RENDERED, "max_tokens": 1}
    assert mesh.http.post(mesh.url("inference", "/v1/completions"), json=last, headers=headers).status_code == 200
    row = until(lambda: accounts.rows().get(contract_id), 60, "the last request in ListUsage")
    assert (int(row["requests"]), int(row["completion_tokens"])) == (1, 1)


def test_embeddings_count_their_input(mesh: RunningMesh, slow: str, accounts: Accounts) -> None:
    contract_id, token = accounts.open("embeddings")
    server = mesh.serve("slow", model_name="vectors", runtime_params="--embeddings --pooling mean --parallel 2")
    try:
        body = {"model": "vectors", "input": [QUESTION, "Hi"]}
        headers = {"authorization": f"Bearer {token}"}
        answer = mesh.http.post(mesh.url("inference", "/v1/embeddings"), json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        row = until(lambda: accounts.rows().get(contract_id), 60, "the request in ListUsage")
    finally:
        mesh.call("DELETE", f"/servers/{server['server_uuid']}")
    assert int(row["prompt_tokens"]) == answer.json()["usage"]["prompt_tokens"] > 0
    assert (int(row.get("completion_tokens", 0)), int(row.get("unknown_requests", 0))) == (0, 0)


def test_a_stream_is_passed_on_as_llama_cpp_sends_it(mesh: RunningMesh, slow: str) -> None:
    body = {"model": slow, "messages": MESSAGES, "stream": True, "n": 2}
    text = mesh.http.post(mesh.url("inference", "/v1/chat/completions"), json=body).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    assert not [event for event in events if "usage" in event]
    assert len([event for event in events if "timings" in event]) == 2
