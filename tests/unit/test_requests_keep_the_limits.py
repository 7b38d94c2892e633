"""Each limit of envoy/limits.yaml at, below and above its number, at each place that the table names; examples are made from the table."""

from __future__ import annotations

import pytest

from controller.xds import builders
from llamesh.kit import limits
from tests.unit.limit_examples import DERIVED, Example, examples
from tests.unit.lua_request import LuaFilter, Outcome

ROUTE = LuaFilter(builders.route_lua({}))
OPEN = {"kind": "inference", "anonymous": True, "host localhost": True}
HEADERS = {
    ":path": "/v1/chat/completions",
    ":method": "POST",
    ":authority": "localhost",
    "content-type": "application/json",
}
TABLE = limits.table()
EXAMPLES = examples()


def run(body: bytes, lua: LuaFilter = ROUTE) -> Outcome:
    return lua.run(HEADERS, OPEN, {}, body)


def name(example: Example) -> str:
    return f"{example.limit}@{example.place}"


def test_every_limit_has_an_example() -> None:
    assert {example.limit for example in EXAMPLES} | DERIVED == TABLE.keys()


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_what_is_allowed_passes_and_one_more_does_not(example: Example) -> None:
    most = TABLE[example.limit].default
    # Lowered limits are as good a test of the counting, and the bodies stay small.
    lowered = max(TABLE[example.limit].least, min(most, 300))
    lua = LuaFilter(builders.route_lua({example.limit: lowered}))
    for amount in (lowered - 1, lowered):
        outcome = run(example.make(amount), lua)
        assert outcome.status is None, outcome.answer
    refused = run(example.make(lowered + 1), lua)
    assert (refused.status, refused.code) == (400, "limit_exceeded")
    said = refused.answer["error"]["message"]
    assert f" {example.limit}: at most {lowered}, sent " in said
    assert refused.answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "example",
    [each for each in EXAMPLES if each.largest is None or TABLE[each.limit].default <= each.largest],
    ids=name,
)
def test_the_default_is_what_counts_without_a_setting(example: Example) -> None:
    most = TABLE[example.limit].default
    outcome = run(example.make(most))
    assert outcome.status is None, outcome.answer
    above = run(example.make(most + max(1, most // 50)))
    assert above.code == "limit_exceeded"
    assert example.limit in above.answer["error"]["message"]
