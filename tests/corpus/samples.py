"""What the recorded requests are made of: the model, media, tools, turns and schemas of answers."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any, Literal

from pydantic import BaseModel, Field

MODEL = "corpus-model"
"""The model that all requests name; tests put another in its place."""


def _png() -> str:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    rows = b"".join(b"\0" + bytes((x, y, 128)) * 8 for y in range(8) for x in (y * 30,))
    head = (8).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    ).decode()


PNG = _png()
WAV = base64.b64encode(
    b"RIFF"
    + (36 + 64).to_bytes(4, "little")
    + b"WAVEfmt \x10\0\0\0\1\0\1\0\x80>\0\0\0}\0\0\2\0\x10\0data@\0\0\0"
    + bytes(64)
).decode()


class Step(BaseModel):
    """One step of a plan."""

    explanation: str = Field(max_length=50_000)
    url: str | None = None
    kind: Literal["read", "write", "run"]


class Plan(BaseModel):
    """What a structured answer looks like."""

    title: str
    steps: list[Step]
    slot_id: int
    tags: dict[str, str] = Field(default_factory=dict)


class Answer(BaseModel):
    """The same within what strict mode allows."""

    title: str
    kind: Literal["read", "write", "run"]
    scores: list[float]


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "url": {"type": "string", "format": "uri", "description": "Where to look."},
        "id_slot": {"type": "integer"},
        "lora": {"type": "array", "items": {"type": "string"}},
        "conversation_id": {"type": "string"},
        "model": {"type": "string"},
        "n": {"type": "integer", "minimum": 1, "maximum": 100},
        "stop": {"type": "array", "items": {"type": "string"}, "maxItems": 50},
        "prompt": {"type": "string", "maxLength": 50_000},
        "grammar": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "filter": {
            "type": "object",
            "properties": {"slot_id": {"type": "integer"}, "image_url": {"type": "string"}},
            "required": ["slot_id"],
        },
    },
    "required": ["url"],
}
ARGUMENTS = {
    "url": "https://example.org/a",
    "id_slot": 3,
    "lora": ["x"],
    "conversation_id": "c1",
    "image_url": "http://x",
}
OPENAI_TOOL: Any = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS}}
OPENAI_TURNS: Any = [
    {"role": "system", "content": "You look things up."},
    {"role": "user", "content": "What is at https://example.org/a ?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": json.dumps(ARGUMENTS)}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": json.dumps({"url": "http://x", "lora": [], "id_slot": 1})},
]
USER: Any = [{"role": "user", "content": "Hello! Grüße, 你好, Привет 😀"}]
IMAGE_TURN: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this? See http://example.org/cat.png"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
        ],
    }
]
ANTHROPIC_TOOL: Any = {
    "name": "look",
    "description": "Looks.",
    "input_schema": PARAMETERS,
    "cache_control": {"type": "ephemeral"},
}
ANTHROPIC_IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
ANTHROPIC_TURNS: Any = [
    {"role": "user", "content": "What is at https://example.org/a ?"},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "I look at http://x.", "signature": "c2ln"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_1", "name": "look", "input": ARGUMENTS},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "toolu_1",
                "content": [{"type": "text", "text": "http://x says yes"}, ANTHROPIC_IMAGE],
            },
            {"type": "text", "text": "And now?", "cache_control": {"type": "ephemeral"}},
        ],
    },
]
