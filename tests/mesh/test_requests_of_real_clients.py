"""The corpus of clients' requests through real Envoy and real llama.cpp.

Each is answered as the engine itself answers it, and no hostile twin reaches the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine import sentence
from tests.corpus.requests import Request, legitimate, twins
from tests.mesh.running import RunningMesh
from tests.unit.lua_response import reshaped, runtime

CORPUS = legitimate()
HEADERS = {"content-type": "application/json"}
NAME = "corpus.gguf"
PATIENCE = 120.0


class Both:
    """A server, by way of the front door and at its engine's own socket."""

    def __init__(self, mesh: RunningMesh, socket: str) -> None:
        self.door = httpx.Client(base_url=mesh.url("inference", ""), timeout=PATIENCE)
        # A connection for each request: llama.cpp closes one that rests, perhaps while the next request is on its way.
        transport = httpx.HTTPTransport(uds=socket, limits=httpx.Limits(max_keepalive_connections=0))
        self.engine = httpx.Client(base_url="http://engine", timeout=PATIENCE, transport=transport)

    def close(self) -> None:
        self.door.close()
        self.engine.close()


@pytest.fixture(scope="module")
def both(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """A server whose context is large enough for agents."""
    mesh.add_model("corpus", NAME, sentence.write(tmp_path_factory.mktemp("corpus") / NAME))
    uuid = mesh.serve("corpus", model_name=NAME, runtime_params="--ctx-size 262144 --parallel 4")["server_uuid"]
    (socket,) = (mesh.home / "run" / "engines").glob(f"{uuid[:8]}-*.sock")
    found = Both(mesh, str(socket))
    try:
        yield found
    finally:
        found.close()
        mesh.call("DELETE", f"/stop/{uuid}")


@pytest.mark.parametrize("sent", CORPUS, ids=lambda sent: sent.name)
def test_it_is_answered_as_by_the_engine_itself(both: Both, sent: Request) -> None:
    body = sent.of(NAME)
    at_door = both.door.post(sent.path, content=body, headers=HEADERS)
    at_engine = both.engine.post(sent.path, content=body, headers=HEADERS)
    assert at_door.headers["content-type"] == at_engine.headers["content-type"]
    if at_engine.status_code < 400:
        assert at_door.status_code == at_engine.status_code, at_door.text[:500]
    else:
        # The engine's own refusal, in the shape of the API that was called.
        anthropic = "/v1/messages" in sent.path
        expected = reshaped(runtime(), at_engine.status_code, at_engine.text, anthropic=anthropic)
        assert (at_door.status_code, at_door.json()) == expected


def test_most_of_the_corpus_gets_an_answer(both: Both) -> None:
    """The model reads no images and makes no embeddings; all else it answers."""
    answered = [
        sent.name
        for sent in CORPUS
        if both.engine.post(sent.path, content=sent.of(NAME), headers=HEADERS).status_code == 200
    ]
    assert len(answered) > len(CORPUS) / 2


def is_the_doors(body: dict[str, Any]) -> bool:
    """Whether the front door wrote a refusal: it names the field or the prompt; the engine's own do neither."""
    return body["error"]["message"].startswith(("The field ", "The body "))


def test_no_hostile_twin_reaches_the_engine(both: Both) -> None:
    accepted, sent = [], 0
    for request in CORPUS:
        for twin in twins(request):
            answer = both.door.post(twin.path, content=twin.of(NAME), headers=HEADERS)
            sent += 1
            if answer.status_code != 400 or not is_the_doors(answer.json()):
                accepted.append((twin.name, answer.status_code, answer.text[:200]))
    assert sent > 500
    assert not accepted
