"""Requests that would hold up everybody, through real Envoy: each is refused at once, and another client is answered."""

from __future__ import annotations

import json
from contextlib import suppress
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
TRIES = 3
"""A busy machine may delay one answer longer, but not three in a row; a costly request takes long each time."""


def body(served: Served, given: dict[str, Any] | bytes) -> bytes:
    text = given if isinstance(given, bytes) else json.dumps(given).encode()
    return b'{"model":"%s",' % served.model.encode() + text[1:]


def send(served: Served, path: str, content: bytes) -> httpx.Response:
    url, headers = served.mesh.url("inference", path), {"content-type": "application/json"}
    for _ in range(TRIES - 1):
        with suppress(httpx.TimeoutException):
            return served.mesh.http.post(url, content=content, headers=headers, timeout=PATIENCE)
    return served.mesh.http.post(url, content=content, headers=headers, timeout=PATIENCE)


def answered(served: Served) -> None:
    plain = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    assert send(served, "/v1/chat/completions", body(served, plain)).status_code == 200


@pytest.mark.parametrize("case", HOSTILE)
def test_it_is_refused_and_others_are_answered(served: Served, case: str) -> None:
    path, given, limit = HOSTILE[case]
    answer = send(served, path, body(served, given))
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    # This mesh has a small context, so the bytes of a prompt may come first.
    met = next(each for each in (limit, "prompt.bytes") if f"the limit {each}" in error["message"])
    assert path.endswith("/messages") or error["code"] == code_of(met)
    answered(served)


@pytest.mark.parametrize("case", LEGITIMATE)
def test_a_legitimate_request_of_the_same_form_is_answered(served: Served, case: str) -> None:
    """By the engine: what it says to a model of a few hundred words and no images is its own matter, but not the front door's refusal."""
    path, given = LEGITIMATE[case]
    text = body(served, given)
    answer = send(served, path, text)
    code = answer.json().get("error", {}).get("code")
    if len(text) > 80_000 and "image" not in case:
        # These are for a larger context than this mesh has.
        assert code in (None, "limit_exceeded", OVER_CONTEXT, 400), answer.text
    else:
        assert code not in ("limit_exceeded", "invalid_type", "unsupported_parameter", "remote_media"), answer.text
        assert "the limit prompt.bytes" not in answer.text
    answered(served)


@pytest.mark.parametrize(
    "example", [each for each in examples() if each.limit not in DERIVED], ids=lambda each: f"{each.limit}@{each.place}"
)
def test_a_request_at_its_limits_delays_no_other_request(served: Served, example: Any) -> None:
    """The engine may take or refuse it; Envoy lets it pass, or refuses it by the smaller bound that this mesh's context gives."""
    most = limits.table()[example.limit].default
    answer = send(served, f"/v1/{example.path}", example.make(min(most, example.largest or most)))
    assert answer.status_code in (200, 400, 404, 500, 501), answer.text
    answered(served)


def test_three_bodies_of_a_million_keys_delay_no_other_request(served: Served) -> None:
    keys = b'{"model":"%s","x":[' % served.model.encode() + b'{"a":1},' * 1_200_000 + b"1]}"
    for _ in range(3):
        refused = send(served, "/v1/chat/completions", keys)
        assert refused.json()["error"]["code"] == "limit_exceeded"
        answered(served)
