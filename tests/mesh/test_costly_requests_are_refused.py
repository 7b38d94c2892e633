"""Requests that would hold up everybody, through real Envoy: each is refused at once, and another client is answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from llamesh.kit import limits
from tests.mesh.conftest import Served
from tests.unit.hostile_bodies import HOSTILE
from tests.unit.legitimate_bodies import LEGITIMATE
from tests.unit.limit_examples import DERIVED, OVER_CONTEXT, code_of, examples

PATIENCE = 5.0
"""Seconds in which any request is answered, whatever others send."""
PAIRS = 3
"""Pairs of a costly and another request. A busy machine may delay one pair, but not each of three; a costly request delays each."""


def body(served: Served, given: dict[str, Any] | bytes) -> bytes:
    text = given if isinstance(given, bytes) else json.dumps(given).encode()
    return b'{"model":"%s",' % served.model.encode() + text[1:]


def send(served: Served, path: str, content: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return served.mesh.http.post(served.mesh.url("inference", path), content=content, headers=headers, timeout=PATIENCE)


def pair(served: Served, path: str, content: bytes) -> httpx.Response:
    """Send a costly request, then another, each once. Return the answer to the costly one. httpx.TimeoutException if one is delayed."""
    plain = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    answer = send(served, path, content)
    assert send(served, "/v1/chat/completions", body(served, plain)).status_code == 200
    return answer


def one_of_the_pairs(served: Served, path: str, make: Callable[[], bytes]) -> httpx.Response:
    """Return the answer to a costly request of the first pair that is not delayed. Fails if `PAIRS` are delayed."""
    for _ in range(PAIRS - 1):
        try:
            return pair(served, path, make())
        except httpx.TimeoutException:
            continue
    return pair(served, path, make())


@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused_and_others_are_answered(served: Served, case: str) -> None:
    path, given, limit = HOSTILE[case]
    answer = one_of_the_pairs(served, path, lambda: body(served, given))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    # This mesh has a small context, so the bytes of a prompt may come first.
    met = next(each for each in (limit, "prompt.bytes") if f"the limit {each}" in error["message"])
    assert path.endswith("/messages") or error["code"] == code_of(met)


@pytest.mark.parametrize("case", LEGITIMATE)
def test_a_legitimate_request_of_the_same_form_is_answered(served: Served, case: str) -> None:
    """By the engine: what it says to a model of a few hundred words and no images is its own matter, but not the front door's refusal."""
    path, given = LEGITIMATE[case]
    text = body(served, given)
    answer = one_of_the_pairs(served, path, lambda: text)
    code = answer.json().get("error", {}).get("code")
    if len(text) > 80_000 and "image" not in case:
        # These are for a larger context than this mesh has.
        assert code in (None, "limit_exceeded", OVER_CONTEXT, 400), answer.text
    else:
        assert code not in ("limit_exceeded", "invalid_type", "unsupported_parameter", "remote_media"), answer.text
        assert "the limit prompt.bytes" not in answer.text


@pytest.mark.parametrize(
    "example", [each for each in examples() if each.limit not in DERIVED], ids=lambda each: f"{each.limit}@{each.place}"
)
def test_a_request_at_its_limits_delays_no_other_request(served: Served, example: Any) -> None:
    """The engine may take or refuse it; Envoy lets it pass, or refuses it by the smaller bound that this mesh's context gives."""
    most = limits.table()[example.limit].default
    size = min(most, example.largest or most)
    answer = one_of_the_pairs(served, f"/v1/{example.path}", lambda: example.make(size))
    assert answer.status_code in (200, 400, 404, 500, 501), answer.text


def test_three_bodies_of_a_million_keys_delay_no_other_request(served: Served) -> None:
    keys = b'{"model":"%s","x":[' % served.model.encode() + b'{"a":1},' * 1_200_000 + b"1]}"
    for _ in range(3):
        refused = one_of_the_pairs(served, "/v1/chat/completions", lambda: keys)
        assert refused.json()["error"]["code"] == "limit_exceeded"
