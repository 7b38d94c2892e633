"""Bodies that are costly beyond their tokens, with the limit that refuses each."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.request_bodies import CHAT, COMPLETIONS, answer_of, chat, tool


def _types(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        inner = {"type": ["object", "array"], "properties": {"p": inner}, "items": inner}
    return inner


def _parts_that_refer(depth: int) -> dict[str, Any]:
    """Objects of ten properties, each put together from the next object: the conversion writes each of them ten times as often."""
    objects: dict[str, Any] = {
        f"o{n}": {
            "type": "object",
            "properties": {f"p{k}": {"allOf": [{"$ref": f"#/$defs/o{n + 1}"}]} for k in range(10)},
        }
        for n in range(depth)
    }
    objects[f"o{depth}"] = {"type": "object", "properties": {"end": {"type": "null"}}}
    return {"allOf": [{"$ref": "#/$defs/o0"}], "$defs": objects}


_DEEP_PATTERN = "^((((a{0,30}){0,30}){0,30}){0,30})$"

HOSTILE: dict[str, tuple[str, dict[str, Any] | bytes, str]] = {
    "nested repetition in a pattern": (
        CHAT,
        answer_of({"type": "string", "pattern": _DEEP_PATTERN}),
        "grammar.ways",
    ),
    "the same in a tool": (
        CHAT,
        chat(tools=[tool({"type": "object", "properties": {"x": {"type": "string", "pattern": _DEEP_PATTERN}}})]),
        "grammar.ways",
    ),
    "the same behind a reference": (
        CHAT,
        answer_of({"$ref": "#/examples/0/x", "examples": [{"x": {"type": "string", "pattern": _DEEP_PATTERN}}]}),
        "grammar.ways",
    ),
    "the same behind a name in two writings": (
        CHAT,
        b'{"messages":[],"json_schema":{"$ref":"#/\xf0\x9f\x98\x80","\\ud83d\\ude00":{"pattern":"'
        + _DEEP_PATTERN.encode()
        + b'"}}}',
        "grammar.ways",
    ),
    "the same behind an empty name": (
        CHAT,
        answer_of({"$ref": "#/a//b", "a": {"b": {}, "": {"b": {"type": "string", "pattern": _DEEP_PATTERN}}}}),
        "grammar.ways",
    ),
    "the same behind an index": (
        CHAT,
        answer_of({"$ref": "#/a/1", "a": [{}, {"pattern": _DEEP_PATTERN}]}),
        "grammar.ways",
    ),
    "the same without a type": (CHAT, answer_of({"type": None, "pattern": _DEEP_PATTERN}), "grammar.ways"),
    "the same with an empty type": (CHAT, answer_of({"type": "", "items": {"pattern": _DEEP_PATTERN}}), "grammar.ways"),
    "the same as one of several types": (
        CHAT,
        answer_of({"type": ["null", "string"], "pattern": _DEEP_PATTERN}),
        "grammar.ways",
    ),
    "the same with escapes": (
        CHAT,
        json.dumps(chat() | {"json_schema": {"pattern": _DEEP_PATTERN}})
        .replace("pattern", "p\\u0061ttern")
        .replace("a{0,30}", "a\\u007b0,30}")
        .encode(),
        "grammar.ways",
    ),
    "the same by rules": (
        COMPLETIONS,
        {"prompt": "x", "grammar": "root ::= b{0,30}\nb ::= c{0,30}\nc ::= d{0,30}\nd ::= [a]{0,30}"},
        "grammar.ways",
    ),
    "an enum of 20,000 strings": (CHAT, answer_of({"enum": [f"value {n}" for n in range(20000)]}), "schema."),
    "10,000 sequence breakers": (
        COMPLETIONS,
        {"prompt": "x", "dry_multiplier": 1, "dry_sequence_breakers": [f"b{n}" for n in range(10000)]},
        "breakers.items",
    ),
    "a grammar of 1 MB": (
        COMPLETIONS,
        {"prompt": "x", "grammar": 'root ::= "' + "a" * (1 << 20) + '"'},
        "grammar.bytes",
    ),
    "a stop string of 1 MB": (CHAT, chat(stop="a" * (1 << 20)), "stop.bytes"),
    "10,000 stop strings": (CHAT, chat(stop=[f"s{n}" for n in range(10000)]), "stop.items"),
    "10,000 stop sequences": ("/v1/messages", chat(stop_sequences=[f"s{n}" for n in range(10000)]), "stop.items"),
    "3,000 optional properties": (
        CHAT,
        answer_of({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(3000)}}),
        "body.object_keys",
    ),
    "200 optional properties": (
        CHAT,
        answer_of({"properties": {f"p{n}": {"type": "string"} for n in range(200)}, "required": ["p1"]}),
        "schema.optional",
    ),
    "300 samplers": (COMPLETIONS, {"prompt": "x", "samplers": [f"{n}" for n in range(300)]}, "samplers.items"),
    "300 samplers by letters": (COMPLETIONS, {"prompt": "x", "samplers": "d" * 300}, "samplers.items"),
    "a large window": (COMPLETIONS, {"prompt": "x", "repeat_last_n": 2**31 - 1}, "window.tokens"),
    "a large window as a fraction": (
        COMPLETIONS,
        b'{"prompt":"x","dry_penalty_last_n":2.147483647e+9}',
        "window.tokens",
    ),
    "a million probabilities": (COMPLETIONS, {"prompt": "x", "n_probs": 10**6}, "probabilities"),
    "a million alternatives": (CHAT, chat(logprobs=True, top_logprobs=10**6), "probabilities"),
    "40,000 logprobs": (COMPLETIONS, {"prompt": "x", "logprobs": 40000}, "probabilities"),
    "100,000 biases": (COMPLETIONS, {"prompt": "x", "logit_bias": {str(n): 1 for n in range(100_000)}}, ""),
    "10,000 biases in a list": (
        COMPLETIONS,
        {"prompt": "x", "logit_bias": [[n, 1] for n in range(10_000)]},
        "bias.entries",
    ),
    "200 KB without spaces": (COMPLETIONS, {"prompt": "abcdefgh" * 25_000}, "prompt.run_bytes"),
    "200 KB without spaces in a message": (
        CHAT,
        chat(messages=[{"role": "user", "content": "é" * 50_000}]),
        "prompt.run_bytes",
    ),
    "200 KB without spaces as escapes": (
        COMPLETIONS,
        b'{"prompt":"' + b"\\u0061" * 30_000 + b'"}',
        "prompt.run_bytes",
    ),
    "20 KB of line feeds": (COMPLETIONS, {"prompt": "\n" * 20_000}, "prompt.run_bytes"),
    "20 KB of quotes": (COMPLETIONS, {"prompt": '"' * 20_000}, "prompt.run_bytes"),
    "20 KB of Chinese commas": (COMPLETIONS, {"prompt": "，" * 7_000}, "prompt.run_bytes"),
    "20 KB of Chinese without a comma": (
        COMPLETIONS,
        json.dumps({"prompt": "天" * 7_000}, ensure_ascii=False).encode(),
        "prompt.run_bytes",
    ),
    "20 KB of digits": (COMPLETIONS, {"prompt": "x " + "7" * 20_000}, "prompt.run_bytes"),
    "a long word in a tool's description": (
        CHAT,
        chat(tools=[tool({"type": "object", "properties": {}}, description="a" * 20_000)]),
        "prompt.run_bytes",
    ),
    "a long word in a schema": (CHAT, chat(tools=[tool({"description": "a" * 20_000})]), "prompt.run_bytes"),
    "a grammar of nested parentheses": (
        COMPLETIONS,
        {"prompt": "x", "grammar": "root ::= " + "(" * 5_000 + "[a]" + ")" * 5_000},
        "grammar.depth",
    ),
    "a pattern of nested parentheses": (
        CHAT,
        answer_of({"pattern": "^" + "(" * 400 + "a" + ")" * 400 + "$"}),
        "grammar.depth",
    ),
    "a long name of a property": (CHAT, answer_of({"properties": {"p" * 100_000: {}}}), "body.key_bytes"),
    "2,000 characters fifty times": (
        CHAT,
        answer_of({"properties": {f"p{n}": {"type": "string", "maxLength": 2000} for n in range(51)}}),
        "schema.repetitions",
    ),
    "1,500 prompts": (COMPLETIONS, {"prompt": ["x"] * 1500}, "prompts.items"),
    "16 prompts with a grammar": (
        COMPLETIONS,
        {"prompt": ["x"] * 16, "grammar": "root ::= [a-z]+"},
        "prompts.items",
    ),
    "arguments of a tool call in each other": (
        CHAT,
        chat(
            messages=[
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"a": ' * 30_000 + "0" + "} " * 30_000}}],
                }
            ]
        ),
        "messages.argument_depth",
    ),
    "the same for responses": (
        "/v1/responses",
        {
            "input": [
                {
                    "type": "function_call",
                    "call_id": "1",
                    "name": "f",
                    "arguments": '{"a\\"}": [' * 3000 + "0" + "]} " * 3000,
                }
            ]
        },
        "messages.argument_depth",
    ),
    "patterns side by side": (
        CHAT,
        answer_of({"anyOf": [{"type": "string", "pattern": f"^{'-?' * 12}{n}$"} for n in range(40)]}),
        "schema.alternatives",
    ),
    "30,000 messages": (CHAT, chat(messages=[{"role": "user", "content": "a"}] * 30_000), "messages.items"),
    "50,000 arguments of the template": (
        CHAT,
        chat(chat_template_kwargs={f"a{n}": 1 for n in range(40_000)}),
        "template.entries",
    ),
    "a schema that refers to itself": (
        CHAT,
        answer_of({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        "schema.depth",
    ),
    "a part that refers to itself": (
        CHAT,
        answer_of(
            {
                "allOf": [{"$ref": "#/$defs/a"}],
                "$defs": {"a": {"type": "object", "properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}]}}}},
            }
        ),
        "schema.",
    ),
    "lists of types in each other": (CHAT, answer_of(_types(12)), "schema."),
    "parts that refer to objects of parts": (CHAT, answer_of(_parts_that_refer(6)), "schema."),
    "long names on a long way": (
        CHAT,
        answer_of(
            {"properties": {"a" * 250: {"properties": {"b" * 250: {"properties": {f"p{n}": {} for n in range(120)}}}}}}
        ),
        "schema.grammar_bytes",
    ),
    "a reference of odd characters": (
        CHAT,
        answer_of({"$ref": "#/" + "/".join(["$" * 100] * 30), "$" * 100: {}}),
        "schema.reference_bytes",
    ),
    "integers with bounds": (
        CHAT,
        answer_of(
            {
                "properties": {
                    f"p{n}": {
                        "properties": {
                            f"q{k}": {"type": "integer", "minimum": 17, "maximum": 98765432} for k in range(50)
                        }
                    }
                    for n in range(20)
                }
            }
        ),
        "schema.nodes",
    ),
    "20,000 keys in one object": (CHAT, chat(metadata={f"k{n}": n for n in range(20_000)}), "body.object_keys"),
    "a deep body": (CHAT, b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "body.depth"),
    "1.2 million keys": (CHAT, b'{"x":[' + b'{"a":1},' * 1_200_000 + b"1]}", "body.keys"),
    "5 million numbers": (COMPLETIONS, b'{"prompt":[' + b"1," * 5_000_000 + b"1]}", "body.values"),
    "a prompt of 9 MB": (COMPLETIONS, {"prompt": "word " * 1_800_000}, "prompt.bytes"),
    "messages of 9 MB": (CHAT, chat(messages=[{"role": "user", "content": "word " * 1000}] * 1800), "prompt.bytes"),
    "arguments of a tool call of 9 MB": (
        CHAT,
        chat(messages=[{"role": "assistant", "tool_calls": [{"function": {"arguments": {"a": "word " * 1_800_000}}}]}]),
        "prompt.bytes",
    ),
}
"""Name: the path, the body, and how the name of the limit begins that refuses it."""
