"""What llama.cpp itself refuses, asked through the front door: the shape of the API that was called, and nothing that SDKs send again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.mesh.conftest import Served

USER = [{"role": "user", "content": "Hello there mesh"}]
LONG = [{"role": "user", "content": "there " * 700}]
"""More tokens than a slot has, and fewer bytes than the front door takes for its context."""
PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGFsbG8="}}]
ANTHROPIC_PICTURE = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgoAAAAN"}}
]


@pytest.mark.parametrize(
    ("path", "body", "telling"),
    [
        ("/v1/messages", {"max_tokens": 4}, "messages is missing"),
        ("/v1/messages", {"messages": LONG, "max_tokens": 4}, "prompt is too long"),
        ("/v1/messages", {"messages": LONG, "max_tokens": 4, "stream": True}, "prompt is too long"),
        ("/v1/messages", {"messages": [{"role": "user", "content": ANTHROPIC_PICTURE}], "max_tokens": 4}, "no images"),
        ("/v1/messages/count_tokens", {}, "messages is missing"),
    ],
)
def test_errors_of_messages_are_of_their_shape(served: Served, path: str, body: dict[str, Any], telling: str) -> None:
    for at in (served.mesh.url("inference", path), served.path(path)):
        answer = served.mesh.http.post(at, json={"model": served.model} | body)
        assert answer.status_code == 400, answer.text
        said = answer.json()
        assert said["type"] == "error"
        assert said["error"]["type"] == "invalid_request_error"
        assert telling in said["error"]["message"]
        assert "mmproj" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PICTURE}]}, "unsupported_media"),
        ("/v1/chat/completions", {"messages": LONG}, "context_length_exceeded"),
        ("/v1/chat/completions", {"messages": USER, "tools": [{}]}, "invalid_value"),
        ("/v1/embeddings", {"input": "a"}, "unsupported_endpoint"),
        ("/v1/rerank", {"query": "a", "documents": ["a"]}, "unsupported_endpoint"),
    ],
)
def test_a_request_at_fault_is_told_so(served: Served, path: str, body: dict[str, Any], code: str) -> None:
    answer = served.mesh.http.post(served.path(path), json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), answer.text
    assert "mmproj" not in answer.text
