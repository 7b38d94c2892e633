"""Bodies that look like the hostile ones and must pass."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.unit.request_bodies import CHAT, COMPLETIONS, answer_of, chat, tool

_PARAMETERS = {
    "type": "object",
    "properties": {
        "model": {"type": "string", "description": "Which model."},
        "n_discard": {"type": "integer", "minimum": 0, "maximum": 2**40},
        "id_slot": {"type": ["integer", "null"]},
        "data": {"type": "string", "pattern": "^[A-Za-z0-9+/]+={0,2}$"},
        "url": {"type": "string", "format": "uri", "default": "https://example.org/"},
        "grammar": {"type": "string", "maxLength": 200},
        "stop": {"type": "array", "items": {"type": "string"}, "maxItems": 50},
        "pattern": {"type": "string", "pattern": "^([a-z0-9]+(-[a-z0-9]+)*)$"},
        "enum": {"enum": ["a", "b", None, 3]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/node"}},
        "address": {"type": "string", "pattern": r"^(\d{1,3}\.){3}\d{1,3}$"},
        "uuid": {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
        "mail": {"type": "string", "pattern": r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$"},
    },
    "required": ["model"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                "value": {"type": "number"},
            },
        },
        "color": {"enum": ["red", "green"]},
        "painted": {"allOf": [{"$ref": "#/$defs/color"}], "default": "red"},
    },
}

_IMAGE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 29_000).decode()

LEGITIMATE: dict[str, tuple[str, dict[str, Any] | bytes]] = {
    "a tool with parameters of forbidden names": (CHAT, chat(tools=[tool(_PARAMETERS)])),
    "the same for Anthropic": ("/v1/messages", chat(tools=[{"name": "use", "input_schema": _PARAMETERS}])),
    "the same for responses": (
        "/v1/responses",
        {"input": "Hi", "tools": [{"type": "function", "name": "use", "parameters": _PARAMETERS}]},
    ),
    "a call of such a tool": (
        CHAT,
        chat(
            messages=[
                {"role": "user", "content": "Hi"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {
                                "name": "use",
                                "arguments": json.dumps({"url": "https://example.org", "id_slot": 1}),
                            },
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": json.dumps({"url": "http://x", "lora": []})},
            ]
        ),
    ),
    "the same for Anthropic's clients": (
        "/v1/messages",
        chat(
            messages=[
                {"role": "user", "content": [{"type": "text", "text": "see http://example.org"}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": "1", "name": "use", "input": {"url": "http://x", "data": "ftp://y"}}
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "http://x"}]},
            ]
        ),
    ),
    "fifty tools": (CHAT, chat(tools=[tool(_PARAMETERS) for _ in range(50)])),
    "an answer of a sizable schema": (
        CHAT,
        answer_of(
            {
                "type": "object",
                "properties": {
                    f"field_{n}": {"type": "object", "properties": {f"part_{k}": {"type": "string"} for k in range(20)}}
                    for n in range(40)
                },
                "required": [f"field_{n}" for n in range(40)],
                "additionalProperties": False,
            }
        ),
    ),
    "an enum of 60 words": (CHAT, answer_of({"enum": [f"Word {n}" for n in range(60)]})),
    "an image of 10 MB": (
        CHAT,
        chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": _IMAGE}}]}]),
    ),
    "metadata of forbidden names": (CHAT, chat(metadata={"model": "x", "id_slot": "1", "url": "http://x"}, user="me")),
    "a prompt of 100 KB": (COMPLETIONS, {"prompt": "The quick brown fox. " * 5000}),
    "100 KB of code": (COMPLETIONS, {"prompt": '\tif (a[i] == "x") {\n\t\treturn f(b, 0x1F);\n\t}\n' * 2200}),
    "100 KB of Chinese": (COMPLETIONS, {"prompt": "今天天气很好，我们去公园散步吧。" * 2200}),
    "100 KB of Chinese as it is": (
        COMPLETIONS,
        json.dumps({"prompt": "今天天气很好，我们去公园散步吧。" * 2200}, ensure_ascii=False).encode(),
    ),
    "a token list of 8,000": (COMPLETIONS, {"prompt": list(range(8000))}),
    "two token lists": (COMPLETIONS, {"prompt": [list(range(3000)), list(range(3000))]}),
    "tokens and text": (COMPLETIONS, {"prompt": [*range(3000), "text", 7]}),
    "2,000 inputs": ("/v1/embeddings", {"input": ["text"] * 2000}),
    "documents": ("/v1/rerank", {"query": "what", "documents": ["a text"] * 500}),
    "what clients send as null": (CHAT, chat(stop=None, logit_bias=None, tools=None, response_format=None, n=None)),
    "samplers of llama.cpp": (
        COMPLETIONS,
        {
            "prompt": "x",
            "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
            "dry_sequence_breakers": ["\n", ":", '"', "*"],
            "repeat_last_n": 64,
            "logit_bias": [[15043, False], ["Hello", -0.5]],
            "grammar": 'root ::= (expr "=" ws term "\\n")+\nexpr ::= term ([-+*/] term)*\n'
            'term ::= ident | num | "(" ws expr ")" ws\nident ::= [a-z] [a-z0-9_]* ws\nnum ::= [0-9]+ ws\nws ::= [ \\t\\n]*',
        },
    ),
    "a grammar of JSON": (
        COMPLETIONS,
        {
            "prompt": "x",
            "grammar": 'root ::= object\nvalue ::= object | array | string | number | ("true" | "false" | "null") ws\n'
            'object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws\n'
            'array ::= "[" ws ( value ("," ws value)* )? "]" ws\n'
            'string ::= "\\"" ( [^"\\\\\\x7F\\x00-\\x1F] | "\\\\" (["\\\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\\"" ws\n'
            'number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws\n'
            'ws ::= | " " | "\\n" [ \\t]{0,20}',
        },
    ),
}
