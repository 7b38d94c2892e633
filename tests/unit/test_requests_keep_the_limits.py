"""Each limit of envoy/limits.yaml at, below and above its number, at each place that the table names; examples are made from the table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from controller.xds import scripts
from llamesh.kit import limits
from tests.unit.hostile_bodies import HOSTILE
from tests.unit.legitimate_bodies import LEGITIMATE
from tests.unit.limit_examples import DERIVED, OVER_CONTEXT, Example, code_of, examples
from tests.unit.lua_request import LuaFilter, Outcome
from tests.unit.request_bodies import CHAT, COMPLETIONS

ROUTE = LuaFilter(scripts.route({}))
OPEN = {"kind": "inference", "anonymous": True, "host localhost": True}
TABLE = limits.table()
EXAMPLES = examples()


def run(body: bytes, lua: LuaFilter = ROUTE, *, path: str = CHAT, settings: dict[str, Any] = OPEN) -> Outcome:
    headers = {":path": path, ":method": "POST", ":authority": "localhost", "content-type": "application/json"}
    return lua.run(headers, settings, {}, body)


def name(example: Example) -> str:
    return f"{example.limit}@{example.place}"


def test_every_limit_has_an_example() -> None:
    assert {example.limit for example in EXAMPLES} | DERIVED == TABLE.keys()


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_a_request_at_the_limit_passes_and_one_above_is_refused(example: Example) -> None:
    most = TABLE[example.limit].default
    # Lowered limits are as good a test of the counting, and the bodies stay small.
    lowered = max(TABLE[example.limit].least, min(most, 300))
    lua = LuaFilter(scripts.route({example.limit: lowered}))
    for amount in (lowered - 1, lowered):
        outcome = run(example.make(amount), lua, path=f"/v1/{example.path}")
        assert outcome.status is None, outcome.answer
    refused = run(example.make(lowered + 1), lua, path=f"/v1/{example.path}")
    assert (refused.status, refused.code) == (400, code_of(example.limit))
    said = refused.answer["error"]["message"]
    assert f" {example.limit}: at most {lowered}, sent " in said
    known = {OVER_CONTEXT: "exceed_context_size_error"}.get(refused.code, "invalid_request_error")
    assert refused.answer["error"]["type"] == ("invalid_request_error" if "type" in refused.answer else known)


@pytest.mark.parametrize(
    "example",
    [each for each in EXAMPLES if each.largest is None or TABLE[each.limit].default <= each.largest],
    ids=name,
)
def test_the_default_limit_applies_without_a_setting(example: Example) -> None:
    most = TABLE[example.limit].default
    outcome = run(example.make(most), path=f"/v1/{example.path}")
    assert outcome.status is None, outcome.answer
    above = run(example.make(most + max(1, most // 50)), path=f"/v1/{example.path}")
    assert (above.status, above.code) == (400, code_of(example.limit))
    assert example.limit in above.answer["error"]["message"]


@pytest.mark.parametrize("case", HOSTILE)
def test_a_request_that_costs_the_engine_too_much_is_refused(case: str) -> None:
    path, given, limit = HOSTILE[case]
    outcome = run(_encoded(given), path=path)
    assert (outcome.status, outcome.code) == (400, code_of(limit)), outcome.answer
    assert f"exceeds the limit {limit}" in outcome.answer["error"]["message"]


@pytest.mark.parametrize("case", LEGITIMATE)
def test_a_legitimate_request_of_the_same_form_passes(case: str) -> None:
    path, given = LEGITIMATE[case]
    outcome = run(_encoded(given), path=path)
    assert outcome.status is None, outcome.answer
    assert outcome.headers["x-llamesh-cluster"] == "m:smol"


def _encoded(given: dict[str, Any] | bytes) -> bytes:
    text = given if isinstance(given, bytes) else json.dumps(given).encode()
    return b'{"model":"smol",' + text[1:]


@pytest.mark.parametrize(
    ("body", "param", "number", "sent"),
    [
        ({"stop": ["a"] * 70}, "stop", 64, "70"),
        ({"messages": [{"content": "x"}, {"content": [{"type": "text", "text": "a" * 5000}]}]}, "messages[1].content[0].text", 4096, "5000"),  # noqa: E501
        ({"n": 1e300}, "n", 3, "1e+300"),
        ({"tools": [{}, {"function": {"parameters": {"enum": list(range(251))}}}]}, "tools[1].function.parameters", 250, "251"),
        ({"messages": [{"tool_calls": [{"function": {"arguments": {'a"\\\n\x00é' * 4: "a" * 5000}}}]}]}, "messages[0].tool_calls[0].function.arguments." + "a??????" * 4, 4096, "5000"),  # noqa: E501
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_the_limit_and_the_value_sent(
    body: dict[str, Any], param: str, number: int, sent: str
) -> None:
    answer = run(_encoded(body)).answer["error"]
    assert answer["param"] == param
    assert answer["message"].startswith(f"The field {param} exceeds the limit ")
    assert f": at most {number}, sent {sent}" in answer["message"]
    assert answer["message"].endswith("docs/reference/limits.md.")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"repeat_last_n":"99999999"}', "repeat_last_n"),
        (b'{"stop":{"0":"a"}}', "stop"),
        (b'{"stop":[["a"]]}', "stop[0]"),
        (b'{"grammar":["root ::= [a]"]}', "grammar"),
        (b'{"messages":{"0":{}}}', "messages"),
        (b'{"messages":["text"]}', "messages[0]"),
        (b'{"n_probs":[1]}', "n_probs"),
        (b'{"logit_bias":7}', "logit_bias"),
        (b'{"chat_template_kwargs":"x"}', "chat_template_kwargs"),
    ],
)
def test_a_value_of_another_kind_is_refused(body: bytes, param: str) -> None:
    outcome = run(_encoded(body))
    assert (outcome.status, outcome.code) == (400, "invalid_type")
    assert outcome.answer["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\u006e":17}',
        b'{"n":1.7e1}',
        b'{"n":17e0}',
        b'{"n":170e-1}',
        b'{ "n" :\t17 }',
        b'{"n":3.0000001}',
        b'{"n":1e999}',
    ],
)
def test_a_number_counts_however_it_is_written(body: bytes) -> None:
    outcome = run(_encoded(body))
    assert (outcome.code, outcome.answer["error"]["param"]) == ("limit_exceeded", "n")


@pytest.mark.parametrize("body", [b'{"N":17}', b'{"n ":17}', b'{"n":-1}', b'{"n":null}', b'{"x":{"n":17}}'])
def test_names_that_the_engine_does_not_read_do_not_count(body: bytes) -> None:
    assert run(_encoded(body)).status is None


def test_a_key_twice_in_a_schema_is_refused() -> None:
    """Which of them counts would decide what the schema costs."""
    outcome = run(_encoded(b'{"json_schema":{"required":["a"],"properties":{"a":{}},"required":[]}}'))
    assert (outcome.status, outcome.code) == (400, "invalid_value")


def test_a_prompt_that_fits_no_server_is_refused() -> None:
    settings = OPEN | {"most_prompt_bytes": 1000}
    at, above = ({"prompt": "word " * 200}, {"prompt": "word " * 200 + "x"})
    assert run(_encoded(at), path=COMPLETIONS, settings=settings).status is None
    refused = run(_encoded(above), path=COMPLETIONS, settings=settings)
    assert refused.answer["error"] == {
        "type": "exceed_context_size_error",
        "code": "context_length_exceeded",
        "param": "prompt",
        "message": "The field prompt exceeds the available context size, by the limit prompt.bytes: at most 1000, sent 1001. "
        "Shorten the prompt, or serve the model with a larger --ctx-size.",
    }
    parts = {"messages": [{"content": "word " * 150}, {"content": "word " * 150}]}
    assert run(_encoded(parts), settings=settings).code == "context_length_exceeded"
    told = run(_encoded(parts), path="/v1/messages", settings=settings).answer
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert told["error"]["message"].startswith("prompt is too long: ")
    # Each prompt of a list is one of its own.
    two = {"prompt": ["word " * 150, "word " * 150]}
    assert run(_encoded(two), path=COMPLETIONS, settings=settings).status is None
    assert run(_encoded(parts), settings=OPEN | {"most_prompt_bytes": 1 << 40}).status is None


@pytest.mark.parametrize(
    ("body", "settings", "passes"),
    [
        ({"n": 3}, {}, True),
        ({"prompt": ["a", "b"], "n": 2}, {}, False),
        ({"prompt": ["a", "b", "c"], "n_cmpl": 1}, {}, True),
        ({"logprobs": True, "max_tokens": 4096}, {}, True),
        ({"logprobs": True, "max_tokens": 5001}, {}, False),
        ({"logprobs": 20, "max_tokens": 2000, "n": 3}, {}, False),
        ({"logprobs": False, "max_tokens": 1_000_000}, {}, True),
        ({"logprobs": True, "top_logprobs": 2, "max_tokens": 50_000}, {}, True),
        ({"logprobs": True, "top_logprobs": 2, "max_tokens": 50_001}, {}, False),
        ({"logprobs": True, "top_logprobs": None, "max_tokens": 5001}, {}, False),
        ({"logprobs": True, "top_logprobs": 1, "n_probs": 20, "max_tokens": 5001}, {}, False),
        ({"n_probs": 20, "max_tokens": None}, {"most_prompt_bytes": 8 * 131_072}, False),
        # Without a bound of its own an answer may be as long as the largest context.
        ({"n_probs": 20}, {"most_prompt_bytes": 8 * 5000}, True),
        ({"n_probs": 20}, {"most_prompt_bytes": 8 * 131_072}, False),
        ({"n_probs": 20, "n_predict": -1}, {"most_prompt_bytes": 8 * 131_072}, False),
        ({"n_probs": 20, "max_tokens": 100}, {"most_prompt_bytes": 8 * 131_072}, True),
    ],
)
def test_the_product_of_fields_is_bounded(body: dict[str, Any], settings: dict[str, Any], passes: bool) -> None:
    outcome = run(_encoded(body), path=COMPLETIONS, settings=OPEN | settings)
    assert (outcome.code == "limit_exceeded") is not passes, outcome.answer


@pytest.mark.parametrize(
    "field", ["n", "n_cmpl", "top_logprobs", "n_probs", "repeat_last_n", "dry_penalty_last_n", "max_tokens"]
)
def test_a_number_that_the_engine_would_cut_to_another_is_refused(field: str) -> None:
    outcome = run(_encoded({field: -4294967292}))
    assert (outcome.status, outcome.code, outcome.answer["error"]["param"]) == (400, "invalid_value", field)


CHINESE = "今天天气很好，我们去公园散步吧。"


@pytest.mark.parametrize("letters", [CHINESE, "Съешь ещё этих мягких. ", "\U0001f600 ", 'a\n"\\ ', "word "])
def test_bytes_of_a_text_are_those_that_it_says(letters: str) -> None:
    """However a client writes it: Python's JSON has six bytes for a letter that has two or three."""
    most = TABLE["prompt.bytes"].default
    text = letters * (most // len(letters.encode()))
    filled = text + " " * (most - len(text.encode()))
    for ascii_only in (True, False):
        for messages in ([filled], [filled[:1000], filled[1000:]], [filled[:-1000], filled[-1000:], ""]):
            body = {"model": "smol", "messages": [{"content": each} for each in messages]}
            assert run(json.dumps(body, ensure_ascii=ascii_only).encode()).status is None
            body["messages"].append({"content": "xy"})
            refused = run(json.dumps(body, ensure_ascii=ascii_only).encode())
            assert (
                f"exceeds the limit prompt.bytes: at most {most}, sent at least " in refused.answer["error"]["message"]
            )
        whole = json.dumps({"model": "smol", "prompt": filled}, ensure_ascii=ascii_only).encode()
        assert run(whole, path=COMPLETIONS).status is None
        more = json.dumps({"model": "smol", "prompt": filled + "x"}, ensure_ascii=ascii_only).encode()
        assert f"sent {most + 1}" in run(more, path=COMPLETIONS).answer["error"]["message"]


@pytest.mark.parametrize(
    ("schema", "limit", "found"),
    [
        ({"properties": {"zone": {"enum": list(range(300))}}}, "schema.constants", "zone"),
        ({"items": {"properties": {"a": {"enum": list(range(300))}}}}, "schema.constants", "items.a"),
        (
            {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"b": {"pattern": "a" * 1025}}}}},
            "schema.pattern_bytes",
            "b",
        ),
        ({"properties": {"c": {"allOf": [{"properties": {"d": {"pattern": "[a-z]*" * 20}}}]}}}, "grammar.ways", "c.d"),
        ({"properties": {'"\n' * 80: {"enum": list(range(300))}}}, "schema.constants", "?" * 64),
        ({"properties": {"e": {"properties": {"f" * 257: {}}}}}, "schema.name_bytes", "e"),
    ],
)
def test_a_refusal_of_a_schema_names_the_property_and_the_page(schema: Any, limit: str, found: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    message = run(_encoded({"tools": [tool]})).answer["error"]["message"]
    assert message.startswith(f"The field tools[0].function.parameters exceeds the limit {limit}: at most ")
    assert message.endswith(
        f" (property '{found}'). All limits, and how the operator changes them: docs/reference/limits.md."
    )
    assert len(message) < 600


@pytest.mark.parametrize("most", [2_000, 2_001, 50_000, 2**31 - 1])
def test_an_upper_bound_of_any_length_passes(most: int) -> None:
    """Beyond 2,000 it is none to the engine, and costs nothing."""
    for bounded in (
        {"type": "string", "maxLength": most},
        {"type": "array", "items": {}, "minItems": 1, "maxItems": most},
    ):
        wide = {"type": "object", "properties": {f"p{n}": bounded for n in range(50)}}
        assert run(_encoded({"tools": [{"function": {"name": "f", "parameters": wide}}]})).status is None
    assert run(_encoded({"json_schema": {"type": "string", "pattern": f"^[a-z]{{1,{most}}}$"}})).status is None


@pytest.mark.parametrize("inner", ['("")', '("" | "")', "b"])
def test_a_bound_that_is_none_to_the_engine_is_none_here(inner: str) -> None:
    """What may be empty would be repeated without an end."""
    outcome = run(_encoded({"grammar": f'root ::= {inner}{{0,2500}} "x"\nb ::= "a"?'}), path=COMPLETIONS)
    assert outcome.status == 400


def test_a_byte_order_mark_is_passed_over_as_the_engine_does() -> None:
    assert run(b'\xef\xbb\xbf{"model":"smol"}').headers["x-llamesh-cluster"] == "m:smol"


def test_alternatives_that_are_not_numbered_count_as_the_engines_own() -> None:
    """logprobs: true stands for 20, which a lower limit does not allow."""
    lua = LuaFilter(scripts.route({"probabilities": 2}))
    assert run(_encoded({"logprobs": True}), lua).code == "limit_exceeded"
    assert run(_encoded({"logprobs": True, "top_logprobs": 2}), lua).status is None
    assert run(_encoded({"logprobs": False}), lua).status is None
