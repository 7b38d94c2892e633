"""Requests to build bodies from."""

from __future__ import annotations

from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def chat(**fields: Any) -> dict[str, Any]:
    """A chat request."""
    return {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4} | fields


def answer_of(schema: Any, **fields: Any) -> dict[str, Any]:
    """A chat request whose answer has a schema."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, **fields)


def tool(parameters: Any, **more: Any) -> dict[str, Any]:
    """A tool as OpenAI's clients send it."""
    return {"type": "function", "function": {"name": "use", "description": "Uses.", "parameters": parameters, **more}}
