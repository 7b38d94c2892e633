# ruff: noqa: E501 - a table is read by its rows
"""Requests of coding agents, written after the shapes that their makers publish; none of them was recorded.

What makes them unlike others: long system prompts, dozens of tools with nested schemas, marks for caches, tools that a provider runs, and names of
fields that mean something to llama.cpp at another place.
"""

from __future__ import annotations

import json
from typing import Any

MODEL = "corpus-model"
_INSTRUCTIONS = (
    "You are a coding agent in the user's terminal. Keep changes small.\n\n# Tools\n- Use `read_file` before `edit_file`; paths are absolute.\n"
    '- Never answer with "http://..." links that you have not seen; `url` must be quoted.\n\n```json\n{"id_slot": 1, "grammar": "root ::= x"}\n```\n'
)
_SYSTEM = _INSTRUCTIONS + "".join(
    f"{n}. Prefer `rg -n 'pattern' src/module_{n}` to reading whole files; explain why in one line.\n"
    for n in range(120)
)
_PATH = {"type": "string", "description": "An absolute path.", "minLength": 1, "maxLength": 4096}
_EDIT = {
    "type": "object",
    "properties": {
        "old_string": {"type": "string", "maxLength": 100_000},
        "new_string": {"type": "string", "maxLength": 100_000},
        "replace_all": {"type": "boolean", "default": False},
    },
    "required": ["old_string", "new_string"],
    "additionalProperties": False,
}
_TODO = {
    "type": "object",
    "properties": {
        "content": {"type": "string", "minLength": 1},
        "status": {"type": "string", "enum": ["pending", "in_progress", "completed"]},
        "children": {"type": "array", "items": {"$ref": "#/$defs/todo"}},
    },
    "required": ["content", "status"],
}
_PROPERTIES: dict[str, dict[str, Any]] = {
    "read_file": {"path": _PATH, "offset": {"type": "integer", "minimum": 0}, "limit": {"type": "number"}},
    "write_file": {"path": _PATH, "content": {"type": "string"}},
    "edit_file": {"path": _PATH, "edits": {"type": "array", "items": _EDIT, "minItems": 1, "maxItems": 50}},
    "shell": {
        "command": {"type": "array", "items": {"type": "string"}},
        "timeout_ms": {"type": ["integer", "null"]},
        "environment": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "glob": {"pattern": {"type": "string"}, "path": _PATH},
    "search": {"pattern": {"type": "string"}, "glob": {"type": "string"}, "output_mode": {"enum": ["content", "files", "count"]}},
    "fetch": {"url": {"type": "string", "format": "uri"}, "prompt": {"type": "string"}, "method": {"enum": ["GET", "HEAD"]}},
    "browser": {
        "action": {"enum": ["open", "click", "type", "screenshot"]},
        "url": {"type": "string"},
        "image_url": {"type": "string"},
        "coordinate": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    },
    "todo": {"todos": {"type": "array", "items": {"$ref": "#/$defs/todo"}}},
    "task": {"description": {"type": "string"}, "model": {"type": "string"}, "n": {"type": "integer"}, "stop": {"type": "array", "items": {"type": "string"}}},
    "llm": {"prompt": {"type": "string"}, "lora": {"type": "array", "items": {}}, "id_slot": {"type": "integer"}, "grammar": {"type": "string"}},
    "memory": {"conversation_id": {"type": "string", "pattern": "^[0-9a-f-]{36}$"}, "slot_id": {"type": "integer"}, "key": {"type": "string"}},
    "database": {"query": {"type": "string"}, "parameters": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]}}},
    "schedule": {"at": {"type": "string", "format": "date-time"}, "every": {"oneOf": [{"const": "day"}, {"const": "week"}, {"type": "integer", "minimum": 1, "maximum": 365}]}},
}  # fmt: skip


def _tools() -> list[tuple[str, str, dict[str, Any]]]:
    """Names, descriptions and schemas: the tools of an agent, and those of servers that it has connected to."""
    found = []
    for name, properties in _PROPERTIES.items():
        schema = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": properties}
        schema |= {"required": [next(iter(properties))], "additionalProperties": False}
        schema |= {"$defs": {"todo": _TODO}} if name == "todo" else {}
        described = f"Does {name}. " + "Say what you do and why; see https://docs.example/tools. " * 5
        found += [(name, described, schema), (f"mcp__server__{name}", described, schema)]
    return found


_CALL = {
    "url": "https://example.org",
    "id_slot": 2,
    "image_url": "http://x/y.png",
    "source": {"type": "url", "url": "file:///x"},
}
_OUTPUT = json.dumps({"stdout": 'ls: "/etc/passwd"\n\tdone \u2713', "exit_code": 0, "lora": None})


def _of_anthropic() -> dict[str, Any]:
    mark = {"cache_control": {"type": "ephemeral"}}
    return {
        "model": MODEL,
        "max_tokens": 16,
        "stream": True,
        "temperature": 1,
        "metadata": {"user_id": "user_0f_account__session_9a"},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=a5145;"},
            {"type": "text", "text": _SYSTEM, **mark},
        ],
        "tools": [
            *({"name": name, "description": about, "input_schema": schema} for name, about, schema in _tools()),
            {"type": "web_search_20250305", "name": "web_search", "allowed_domains": ["example.org"]},
        ],
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "<system-reminder>\nToday.\n</system-reminder>"}, {"type": "text", "text": "Fix it."}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Look first.", "signature": "c2ln"}, {"type": "tool_use", "id": "t1", "name": "fetch", "input": _CALL}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": _OUTPUT, "is_error": False}]},
            {"role": "assistant", "content": [{"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}}, {"type": "web_search_tool_result", "tool_use_id": "s1", "content": [{"type": "web_search_result", "url": "https://example.org", "title": "x", "encrypted_content": "eA=="}]}, {"type": "text", "text": "Found.", "citations": [{"type": "web_search_result_location", "url": "https://example.org", "cited_text": "x"}]}]},
            {"role": "user", "content": [{"type": "text", "text": "Go on.", **mark}]},
        ],
    }  # fmt: skip


def _of_responses() -> dict[str, Any]:
    functions = [
        {"type": "function", "name": name, "description": about, "strict": False, "parameters": schema}
        for name, about, schema in _tools()
    ]
    patch = {"type": "grammar", "syntax": "lark", "definition": 'start: begin hunk+ end\nbegin: "*** Begin Patch" LF\n'}
    return {
        "model": MODEL,
        "instructions": _SYSTEM,
        "max_output_tokens": 16,
        "tools": [
            *functions,
            {"type": "custom", "name": "apply_patch", "description": "Patches.", "format": patch},
            {"type": "web_search", "external_web_access": False},
            {"type": "local_shell"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
        "client_metadata": {"conversation_id": "0199a213"},
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>\n"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Fix it."}]},
            {"type": "function_call", "call_id": "c1", "name": "fetch", "arguments": json.dumps(_CALL)},
            {"type": "function_call_output", "call_id": "c1", "output": _OUTPUT},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Done.", "annotations": [{"type": "url_citation", "url": "https://x"}]}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Thanks."}]},
        ],
    }  # fmt: skip


def _of_chat() -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "fetch", "arguments": json.dumps(_CALL)}}
    return {
        "model": MODEL,
        "max_tokens": 16,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {"type": "function", "function": {"name": name, "description": about, "parameters": schema}}
            for name, about, schema in _tools()
        ],
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": [{"type": "text", "text": "Fix it.", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Look first."},
            {"role": "tool", "tool_call_id": "c1", "name": "fetch", "content": _OUTPUT},
            {"role": "user", "content": "Go on."},
        ],
    }


def requests() -> dict[str, tuple[str, bytes]]:
    """The path and the body of each, by what it is."""
    messages, responses, chat = _of_anthropic(), _of_responses(), _of_chat()
    counted = {name: messages[name] for name in ("model", "system", "tools", "messages")}
    # Some keep letters, some escape them; some put the fields of a long session behind its messages.
    return {
        "agent by Anthropic's API": ("/v1/messages", json.dumps(messages, ensure_ascii=False).encode()),
        "agent that counts first": ("/v1/messages/count_tokens", json.dumps(counted).encode()),
        "agent by the Responses API": ("/v1/responses", json.dumps(responses).encode()),
        "agent by chat": ("/v1/chat/completions", json.dumps(chat, separators=(",", ":")).encode()),
        "agent by chat, its fields turned round": (
            "/v1/chat/completions",
            json.dumps({name: chat[name] for name in reversed(chat)}, indent=2).encode(),
        ),
        "agent that plans": (
            "/v1/chat/completions",
            json.dumps(
                {**chat, "tools": None, "stream": False, "response_format": {"type": "json_schema", "json_schema": {"name": "plan", "strict": True, "schema": {"type": "object", "properties": {"todos": {"type": "array", "items": {"$ref": "#/$defs/todo"}, "maxItems": 20}}, "required": ["todos"], "$defs": {"todo": _TODO}}}}}
            ).encode(),
        ),
    }  # fmt: skip
