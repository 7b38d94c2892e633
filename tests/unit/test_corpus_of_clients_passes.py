"""What real clients send passes the filter of the front door, and none of its hostile twins does."""

from __future__ import annotations

import pytest

from tests.corpus.requests import Request, legitimate, twins
from tests.mesh.accepted import FrontDoor

DOOR = FrontDoor()
CORPUS = legitimate()


def test_the_corpus_has_every_kind_of_client_and_path() -> None:
    told = " ".join(request.name for request in CORPUS)
    for client in ("openai", "anthropic", "langchain-openai", "litellm", "agent"):
        assert client in told
    assert len({request.path for request in CORPUS}) == 7


@pytest.mark.parametrize("request_", CORPUS, ids=lambda request: request.name)
def test_it_passes_and_its_twins_do_not(request_: Request) -> None:
    assert DOOR.lets_through(request_.path, request_.body)
    accepted = [twin.name for twin in twins(request_) if DOOR.lets_through(twin.path, twin.body)]
    assert not accepted
