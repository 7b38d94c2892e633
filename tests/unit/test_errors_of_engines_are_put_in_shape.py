"""Errors as llama.cpp words them, put in the shape of the API that was called, by the filter in LuaJIT without Envoy."""

from __future__ import annotations

import json

import pytest
from lupa.luajit21 import LuaRuntime

from controller.xds import templates
from llamesh.kit.inference_errors import anthropic_type
from tests.unit.lua_response import reshaped, runtime


@pytest.fixture(scope="module")
def lua() -> LuaRuntime:
    return runtime()


def of_llama(status: int, message: str, kind: str = "server_error", **more: int) -> str:
    error = {"code": status, "message": message, "type": kind, **more}
    return json.dumps({"error": error}, separators=(",", ":"), ensure_ascii=False)


# Recorded from llama.cpp: status, message and type.
SAID = [
    (500, "'messages' is required"),
    (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
    (500, "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
    (500, "Failed to parse messages: [json.exception.type_error.302] type must be string, but is number"),
    (500, 'Failed to parse tools: Missing tool type: {}; tools = [\n  {"description":"größer \\" \\\\ ü"}\n]'),
    (500, "Unknown reasoning format: x"),
    (500, "input (700 tokens) is too large to process. increase the physical batch size (current batch size: 512)"),
    (501, "This server does not support embeddings. Start it with `--embeddings`"),
    (501, "This server does not support reranking. Start it with `--reranking`"),
]


@pytest.mark.parametrize(("status", "message"), SAID)
@pytest.mark.parametrize("anthropic", [False, True], ids=["openai", "anthropic"])
def test_an_error_caused_by_the_request_is_not_retried(
    lua: LuaRuntime, status: int, message: str, *, anthropic: bool
) -> None:
    seen, said = reshaped(lua, status, of_llama(status, message), anthropic=anthropic)
    assert seen == 400
    assert said["error"]["type"] == "invalid_request_error"
    assert "mmproj" not in said["error"]["message"]
    assert (said.get("type") == "error") is anthropic
    assert anthropic or isinstance(said["error"]["code"], str)


def test_a_prompt_over_the_context_is_known_by_clients(lua: LuaRuntime) -> None:
    message = "request (24026 tokens) exceeds the available context size (256 tokens), try increasing it"
    body = of_llama(400, message, "exceed_context_size_error", n_prompt_tokens=24026, n_ctx=256)
    words = (
        "request (24026 tokens) exceeds the available context size (256 tokens). "
        "Shorten the prompt, or serve the model with a larger --ctx-size."
    )
    assert reshaped(lua, 400, body, anthropic=False)[1] == {
        "error": {
            "message": words,
            "type": "exceed_context_size_error",
            "param": None,
            "code": "context_length_exceeded",
            "n_prompt_tokens": 24026,
            "n_ctx": 256,
        }
    }
    assert reshaped(lua, 400, body, anthropic=True)[1] == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": f"prompt is too long: {words}"},
    }


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 503, 504])
def test_errors_of_the_messages_api_have_its_shape(lua: LuaRuntime, status: int) -> None:
    message = "Field 'temperature': \"a\\b\" ü"
    seen, said = reshaped(lua, status, of_llama(status, message), anthropic=True)
    assert (seen, said) == (status, {"type": "error", "error": {"type": anthropic_type(status), "message": message}})


@pytest.mark.parametrize(
    "body",
    [
        '{"error":{"message":"x","type":"server_error","param":null,"code":"engine_timeout"}}',
        '{"type":"error","error":{"type":"api_error","message":"x"}}',
        '{"error":{"code":500,"message":"without an end',
        '{"error":{"code":500,"message":"x\\',
        "{}",
        "",
    ],
)
@pytest.mark.parametrize("anthropic", [False, True])
def test_a_body_that_is_not_an_engine_error_stays_unchanged(lua: LuaRuntime, body: str, *, anthropic: bool) -> None:
    sent = body.encode()
    seen = lua.globals()[b"handle"](b"500", anthropic, sent, str(len(sent)).encode())
    assert seen == (b"500", sent, str(len(sent)).encode())


def test_an_unknown_failure_stays_a_failure(lua: LuaRuntime) -> None:
    body = of_llama(500, "failed to decode: image input is not supported")
    assert reshaped(lua, 500, body, anthropic=False) == (500, json.loads(body))


@pytest.mark.parametrize("filler", ['"', "\\", "\u0001", "ü", "😀", "a"])
@pytest.mark.parametrize("before", range(8))
def test_a_long_message_is_cut_between_characters(lua: LuaRuntime, filler: str, before: int) -> None:
    message = f"Failed to parse tools: {'a' * before}{filler * 30000}"
    said = reshaped(lua, 500, of_llama(500, message), anthropic=before % 2 > 0)[1]["error"]["message"]
    assert said.endswith("...")
    assert message.startswith(said[:-3])
    assert len(said) < 2100


def test_each_entry_says_why_and_is_reached() -> None:
    entries = templates.raw("replies/engine.yaml")
    for at, entry in enumerate(entries):
        assert entry["why"]
        assert not any(entry["begins"].startswith(earlier["begins"]) for earlier in entries[:at]), entry["begins"]
