"""The corpus: what must pass the front door, and of each request its twins, which must not.

A twin has the shape of its request and one thing more, at a place from which llama.cpp reads it.
Invariant: twins depend on their request alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.corpus import agents

_RECORDED = Path(__file__).with_name("recorded.jsonl")


@dataclass(frozen=True)
class Request:
    """One request."""

    name: str
    path: str
    body: bytes

    def of(self, model: str) -> bytes:
        """Its body, for a model that is served."""
        return self.body.replace(agents.MODEL.encode(), model.encode())


def legitimate() -> list[Request]:
    """What clients send."""
    found = []
    for line in _RECORDED.read_text().splitlines():
        row = json.loads(line)
        found.append(Request(f"{row['client']}: {row['name']}", row["path"], row["body"].encode()))
    return found + [Request(name, path, body) for name, (path, body) in agents.requests().items()]


_ADDRESS = "http://169.254.169.254/latest/meta-data/"
_PATTERN = "^((((a{0,30}){0,30}){0,30}){0,30})$"
_COSTLY = {"type": "object", "properties": {"x": {"type": "string", "pattern": _PATTERN}}, "required": ["x"]}
_ENDLESS = {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}
_SOURCE = {"type": "image", "source": {"type": "url", "url": _ADDRESS}}


def _media(path: str) -> list[dict[str, Any]]:
    """Messages, items or inputs with an address where media is read."""
    if path.startswith("/v1/messages"):
        result = {"type": "tool_result", "tool_use_id": "t", "content": [_SOURCE]}
        return [{"role": "user", "content": [part]} for part in (_SOURCE, result)]
    if path.startswith("/v1/responses"):
        part = {"type": "input_image", "image_url": _ADDRESS}
        return [{"role": "user", "content": [part]}, {"type": "function_call_output", "call_id": "c", "output": [part]}]
    parts = [
        {"type": "image_url", "image_url": {"url": _ADDRESS}},
        {"type": "input_audio", "input_audio": {"data": _ADDRESS, "format": "wav"}},
        {"type": "video_url", "video_url": {"url": _ADDRESS}},
    ]
    return [{"role": "user", "content": [part]} for part in parts]


def _tool(path: str, schema: Any) -> dict[str, Any]:
    if path.startswith("/v1/messages"):
        return {"name": "f", "input_schema": schema}
    if path.startswith("/v1/responses"):
        return {"type": "function", "name": "f", "parameters": schema}
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def _changes(path: str, body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of twins, and what is other than in their request."""
    if path == "/v1/embeddings":
        for message in _media(path):
            yield "media", {"input": [message]}
        yield "media beside", {"input": {"prompt_string": "x", "multimodal_data": [_ADDRESS]}}
        yield "inputs", {"input": ["a"] * 3000}
        return
    for field in ("id_slot", "lora", "n_discard", "grammar_triggers"):
        yield field, {field: 1}
    if path == "/v1/completions":
        yield "media beside", {"prompt": {"prompt_string": "x", "multimodal_data": [_ADDRESS]}}
        yield "schema", {"json_schema": _COSTLY}
        yield "grammar", {"grammar": "root ::= root"}
        return
    conversation = "input" if path.startswith("/v1/responses") else "messages"
    before = body[conversation] if isinstance(body[conversation], list) else [{"role": "user", "content": "Hi"}]
    for message in _media(path):
        yield "media", {conversation: [*before, message]}
    for schema in (_COSTLY, _ENDLESS):
        yield "tool", {"tools": [*(body.get("tools") or []), _tool(path, schema)]}
    yield "stop", {"stop_sequences" if path.startswith("/v1/messages") else "stop": ["a" * 300]}


def twins(request: Request) -> list[Request]:
    """The hostile twins of a request."""
    body: dict[str, Any] = json.loads(request.body)
    found = [
        (name, json.dumps(body | change, ensure_ascii=False).encode()) for name, change in _changes(request.path, body)
    ]
    # The same key twice, the second one written in escapes: it would be the one that counts.
    for name, change in _changes(request.path, body):
        ((key, value),) = change.items()
        written = "".join(f"\\u{ord(letter):04x}" for letter in key)
        found.append(
            (f"{name} in escapes", request.body.rstrip()[:-1] + f',"{written}":{json.dumps(value)}}}'.encode())
        )
    return [Request(f"{request.name}: {name}", request.path, text) for name, text in found]
